// What llhttp, as node's servers and clients use it, makes of messages: without any lenient flag.
//
// Standard input has messages, each after a line with its kind (request, response), the method of its
// request and its length. For each, standard output has a line of JSON: the messages that are
// complete, each with its fields and content, and whether there was an error.
"use strict";

process.removeAllListeners("warning");
process.on("warning", () => {});
const { HTTPParser, methods } = process.binding("http_parser");

function read(kind, method, bytes) {
    const parser = new HTTPParser();
    parser.initialize(kind === "request" ? HTTPParser.REQUEST : HTTPParser.RESPONSE, {}, 1 << 20, HTTPParser.kLenientNone);
    const messages = [];
    let headers = [];
    let target = "";
    let current = null;
    // Trailers, and whatever comes behind them: heads of further messages too.
    parser[HTTPParser.kOnHeaders] = (more, url) => {
        headers.push(...more);
        target += url;
    };
    parser[HTTPParser.kOnHeadersComplete] = (major, minor, lines, verb, url, status, reason, upgrade) => {
        headers.push(...(lines || []));
        const name = verb === undefined ? null : methods[verb];
        const version = `${major}.${minor}`;
        current = { version, method: name, url: target + (url || ""), status, headers, content: "", upgrade };
        headers = [];
        target = "";
        messages.push(current);
        // What a client says of the response to HEAD: there is no body.
        return method === "HEAD" && kind === "response" && status >= 200 ? 1 : 0;
    };
    parser[HTTPParser.kOnBody] = (body) => {
        current.content += Buffer.from(body).toString("latin1");
    };
    parser[HTTPParser.kOnMessageComplete] = () => {
        current.complete = true;
        headers = [];
        target = "";
    };
    const result = parser.execute(bytes);
    const error = result instanceof Error ? result.code || result.message : null;
    const finished = error === null && kind === "response" ? parser.finish() : undefined;
    return { messages, error, ends: finished instanceof Error ? finished.code : null };
}

const input = require("fs").readFileSync(0);
const out = [];
for (let at = 0; at < input.length; ) {
    const end = input.indexOf("\n", at);
    const [kind, method, length] = input.toString("latin1", at, end).split(" ");
    const bytes = input.subarray(end + 1, end + 1 + Number(length));
    out.push(JSON.stringify(read(kind, method, Buffer.from(bytes))));
    at = end + 1 + Number(length);
}
process.stdout.write(out.join("\n") + "\n");
