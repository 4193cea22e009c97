// A backend on the `ws` library: echoes, does what a message that begins with `!` asks for, tells how it ended.
// It prints `port N` first, then one JSON line for each connection that closed. `websockets_backend.py` is its twin.
"use strict";
const { WebSocketServer } = require("ws");

const PATTERN = Buffer.from(Array.from({ length: 251 }, (_, at) => at));
const pattern = (size) => Buffer.alloc(size, PATTERN);

const server = new WebSocketServer({
  host: "127.0.0.1",
  port: Number(process.argv[2] || 0),
  maxPayload: 64 * 1024 * 1024,
  perMessageDeflate: { threshold: 0 },
  handleProtocols: (offered) => ["chat.v2", "chat.v1"].find((name) => offered.has(name)) || false,
});

server.on("listening", () => console.error("port " + server.address().port));

server.on("connection", (socket, request) => {
  socket.on("error", () => {});
  socket.on("message", (data, isBinary) => {
    const text = isBinary ? "" : data.toString();
    if (text.startsWith("!")) {
      const gap = text.indexOf(" ");
      obey(socket, request, text.slice(1, gap < 0 ? undefined : gap), gap < 0 ? "" : text.slice(gap + 1));
    } else {
      socket.send(data, { binary: isBinary });
    }
  });
  socket.on("close", (code, reason) => {
    console.error(JSON.stringify({ target: request.url, code, reason: reason.toString() }));
  });
});

function obey(socket, request, order, rest) {
  if (order === "head") {
    const headers = [];
    for (let at = 0; at < request.rawHeaders.length; at += 2) {
      headers.push([request.rawHeaders[at], request.rawHeaders[at + 1]]);
    }
    socket.send(JSON.stringify({ target: request.url, headers }));
  } else if (order === "close") {
    const [code, ...reason] = rest.split(" ");
    socket.close(Number(code), reason.join(" "));
  } else if (order === "ping") {
    socket.once("pong", (payload) => socket.send("ponged " + payload));
    socket.ping(rest);
  } else if (order === "binary") {
    socket.send(pattern(Number(rest)));
  } else if (order === "fragments") {
    const count = Number(rest);
    for (let number = 0; number < count; number++) {
      socket.send(`part${number}.`, { fin: number === count - 1, binary: false });
    }
  } else {
    socket.send("unknown order " + order);
  }
}
