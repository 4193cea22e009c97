// Clients on the `ws` library, driven over standard input: one JSON order a line, one JSON answer a line on standard output.
// Many sockets live in one process; each keeps what arrived in a queue until `receive` asks for it.
"use strict";
const crypto = require("crypto");
const readline = require("readline");
const WebSocket = require("ws");

const PATTERN = Buffer.from(Array.from({ length: 251 }, (_, at) => at));
const sockets = new Map();

class Inbox {
  constructor() {
    this.held = [];
    this.waiting = [];
  }
  put(event) {
    const next = this.waiting.shift();
    next ? next(event) : this.held.push(event);
  }
  take() {
    return this.held.length ? Promise.resolve(this.held.shift()) : new Promise((done) => this.waiting.push(done));
  }
}

function open(order) {
  const socket = new WebSocket(order.url, order.protocols || [], {
    headers: order.headers || {},
    perMessageDeflate: order.deflate ? { threshold: 0 } : false,
    maxPayload: 64 * 1024 * 1024,
    ...(order.origin ? { origin: order.origin } : {}),
  });
  const entry = { socket, inbox: new Inbox() };
  sockets.set(order.socket, entry);
  socket.on("message", (data, isBinary) => {
    const digest = crypto.createHash("sha256").update(data).digest("hex");
    const text = isBinary || data.length > 65536 ? null : data.toString();
    entry.inbox.put({ event: "message", binary: isBinary, size: data.length, digest, text });
  });
  socket.on("pong", (data) => entry.inbox.put({ event: "pong", payload: data.toString() }));
  socket.on("close", (code, reason) => entry.inbox.put({ event: "close", code, reason: reason.toString() }));
  return new Promise((done) => {
    socket.on("open", () => done({ event: "open", protocol: socket.protocol, extensions: socket.extensions }));
    socket.on("unexpected-response", (_, response) => {
      const parts = [];
      response.on("data", (part) => parts.push(part));
      response.on("end", () => done({ event: "refused", status: response.statusCode, body: Buffer.concat(parts).toString() }));
    });
    socket.on("error", (error) => done({ event: "error", message: error.message }));
  });
}

function payload(order) {
  if (order.pattern !== undefined) return Buffer.alloc(order.pattern, PATTERN);
  return order.binary ? Buffer.from(order.data, "base64") : order.data;
}

async function obey(order) {
  if (order.do === "open") return open(order);
  const { socket, inbox } = sockets.get(order.socket);
  switch (order.do) {
    case "send":
      await new Promise((done) => socket.send(payload(order), { binary: order.binary, fin: order.fin !== false }, done));
      return {};
    case "receive":
      return inbox.take();
    case "ping":
      socket.ping(order.payload);
      return {};
    case "close":
      order.code === null ? socket.close() : socket.close(order.code, order.reason);
      return {};
    case "terminate":
      socket.terminate();
      return {};
  }
  throw new Error("unknown order " + order.do);
}

readline.createInterface({ input: process.stdin }).on("line", async (line) => {
  const order = JSON.parse(line);
  let answer;
  try {
    answer = await obey(order);
  } catch (error) {
    answer = { event: "failed", message: String(error) };
  }
  console.log(JSON.stringify({ order: order.order, ...answer }));
});
process.stdin.on("end", () => process.exit(0));
