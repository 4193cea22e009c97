// Builds dist/ (ES modules and types, for npm) and ../../assets/client.js (one file, served by the
// gateway).
// `node build.js --check` builds nothing: it fails when the committed file differs from the sources
// or is larger than it may be.
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { buildSync } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const asset = join(here, "../../assets/client.js");
const banner = "// aivtuber-gateway-client: the sources are in clients/js\n";

/** Bytes, minified and gzipped. */
const CORE_BYTES_MAX = 4 * 1024;
const WHOLE_BYTES_MAX = 9 * 1024;

const bundle = (entry, { served = false, ...options } = {}) =>
  buildSync({
    absWorkingDir: here,
    entryPoints: [`src/${entry}.ts`],
    bundle: true,
    format: "esm",
    target: "es2022",
    define: { IS_SERVED: String(served) },
    write: false,
    ...options,
  }).outputFiles[0].text;

mkdirSync(join(here, "dist"), { recursive: true });
mkdirSync(dirname(asset), { recursive: true });
const whole = banner + bundle("index", { minify: true, served: true });
const sizes = [
  ["core", gzipSync(bundle("core", { minify: true }), { level: 9 }).length, CORE_BYTES_MAX],
  ["client.js", gzipSync(whole, { level: 9 }).length, WHOLE_BYTES_MAX],
];
for (const [name, bytes, max] of sizes) {
  console.log(`${name}: ${bytes} bytes minified and gzipped, at most ${max}`);
  if (bytes > max) throw new Error(`${name} is too large`);
}

if (process.argv.includes("--check")) {
  if (readFileSync(asset, "utf8") !== whole) {
    throw new Error("assets/client.js differs from its sources: run `npm run build` in clients/js");
  }
} else {
  for (const entry of ["index", "core"]) {
    writeFileSync(join(here, `dist/${entry}.js`), bundle(entry));
  }
  writeFileSync(asset, whole);
}
execFileSync(process.execPath, ["node_modules/typescript/bin/tsc", "--emitDeclarationOnly"], {
  cwd: here,
  stdio: "inherit",
});
