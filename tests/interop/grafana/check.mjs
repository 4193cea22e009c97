// Checks a dashboard against the types that Grafana publishes: `node check.mjs DASHBOARD.json`.
// Prints what does not fit, and then ends with status 1. Unknown fields are faults too.

import fs from "node:fs";
import path from "node:path";
import url from "node:url";
import ts from "typescript";

const folder = path.dirname(url.fileURLToPath(import.meta.url));
const dashboard = fs.readFileSync(process.argv[2], "utf8");

// Enums of strings take no literals, so that their values are written out.
const source = `
import type { Dashboard } from "@grafana/schema";

type Literal<T> =
    T extends string ? \`\${T}\`
    : T extends number | boolean | null | undefined ? T
    : T extends readonly (infer Item)[] ? Literal<Item>[]
    : T extends object ? { [Key in keyof T]: Literal<T[Key]> }
    : T;

export const dashboard: Literal<Dashboard> = ${dashboard};
`;

const name = path.join(folder, "dashboard.ts");
const options = {
    strict: true,
    noEmit: true,
    skipLibCheck: true,
    target: ts.ScriptTarget.ES2022,
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    types: [],
};
const host = ts.createCompilerHost(options);
const { fileExists, getSourceFile, readFile } = host;
host.fileExists = (file) => file === name || fileExists(file);
host.readFile = (file) => (file === name ? source : readFile(file));
host.getSourceFile = (file, ...rest) =>
    file === name ? ts.createSourceFile(file, source, options.target) : getSourceFile(file, ...rest);

const program = ts.createProgram([name], options, host);
const faults = ts.getPreEmitDiagnostics(program);
for (const { file, start, messageText } of faults) {
    const at = file?.text.slice(start, start + 60).replaceAll(/\s+/g, " ") ?? "";
    console.log(`${at}: ${ts.flattenDiagnosticMessageText(messageText, "\n")}`);
}
process.exit(faults.length > 0 ? 1 : 0);
