// An HTTP backend on node's own parser. `/echo` reports the request as it came; bodies are streamed.
// Arguments: `unix PATH` listens on a Unix socket, `tls PEM KEY` with TLS.
"use strict";

const crypto = require("crypto");
const fs = require("fs");
const http = require("http");
const https = require("https");

const CHUNK = Buffer.alloc(64 * 1024, "0123456789abcdef");

function fromPattern(response, left) {
    while (left > 0) {
        const bytes = CHUNK.subarray(0, Math.min(left, CHUNK.length));
        left -= bytes.length;
        if (!response.write(bytes)) {
            response.once("drain", () => fromPattern(response, left));
            return;
        }
    }
    response.end();
}

let stream = null;

function respond(request, response) {
    const url = new URL(request.url, "http://backend");
    const number = (name) => Number(url.searchParams.get(name));
    switch (url.pathname) {
        case "/echo": {
            const hash = crypto.createHash("sha256");
            let length = 0;
            request.on("data", (bytes) => {
                hash.update(bytes);
                length += bytes.length;
            });
            request.on("end", () => {
                const { method, url: target, rawHeaders: headers, httpVersion: version, rawTrailers: trailers } = request;
                const seen = { method, target, headers, version, length, sha256: hash.digest("hex"), trailers };
                response.setHeader("Content-Type", "application/json");
                response.end(JSON.stringify(seen));
            });
            break;
        }
        case "/download":
            response.writeHead(200, url.searchParams.has("chunked") ? {} : { "Content-Length": number("bytes") });
            fromPattern(response, number("bytes"));
            break;
        case "/events":
            response.writeHead(200, { "Content-Type": "text/event-stream" });
            response.write("data: 1\n\n");
            stream = response;
            response.on("close", () => console.log("stream closed"));
            break;
        case "/more":
            stream.write("data: 2\n\n");
            response.end("sent");
            break;
        case "/private":
            // Without reading the body.
            response.writeHead(401, { "WWW-Authenticate": "Basic", "Content-Length": 2 });
            response.end("no");
            break;
        case "/moved":
            response.writeHead(302, { Location: "/api/echo" });
            response.end();
            break;
        case "/known":
            response.writeHead(304, { ETag: '"x"' });
            response.end();
            break;
        case "/cut":
            response.writeHead(200, { "Content-Length": 1000 });
            response.write("half", () => request.socket.destroy());
            break;
        default:
            response.writeHead(404);
            response.end("not here");
    }
}

const [kind, path, key] = process.argv.slice(2);
const server =
    kind === "tls"
        ? https.createServer({ cert: fs.readFileSync(path), key: fs.readFileSync(key) }, respond)
        : http.createServer(respond);
const place = kind === "unix" ? { path } : { port: 0, host: "127.0.0.1" };
server.listen(place, () => console.log(`port ${server.address().port ?? 0}`));
