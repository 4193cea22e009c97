// The client library in Node: listens for tasks over connections that are cut at random bytes.
// Standard input: one JSON object, { url, tasks, cuts, bytes, seed }: the first `cuts` connections are
// cut within their first `bytes` bytes. `stops`: which of the answers stop their task at the first
// text. Standard output: what each task's answer had, and how it ended.
"use strict";
const { createHash } = require("crypto");
const { readFileSync } = require("fs");
const WebSocket = require("ws");

const order = JSON.parse(readFileSync(0, "utf8"));

let seed = order.seed;
const random = (max) => (seed = (seed * 48271) % 2147483647) % max;

/** A WebSocket whose TCP connection is cut after some bytes, in the middle of a frame or not. */
class Cut extends WebSocket {
  static queries = [];
  static left = order.cuts;

  constructor(url) {
    super(url);
    Cut.queries.push(new URL(url).search);
    let budget = Cut.left-- > 0 ? random(order.bytes) : Infinity;
    this.on("upgrade", ({ socket }) => {
      // Not before the library listens: a listener makes the bytes flow.
      const watch = () => socket.on("data", ({ length }) => (budget -= length) <= 0 && socket.destroy());
      this.on("open", watch);
    });
  }
}

async function listen(gateway, task, index) {
  const answer = gateway.listen(task);
  const results = [];
  for await (const part of answer) {
    if (part.type === "text") results[part.index] = { content: part.content, offsets: [], ends: 0 };
    // A stream has no text.
    const result = (results[part.index] ??= { offsets: [], ends: 0 });
    if (part.type === "audio") {
      result.hash ??= createHash("sha256");
      result.hash.update(part.bytes);
      result.offsets.push(part.offset);
    }
    if (part.type === "audio_end") result.ends += 1;
    if (part.type === "text" && order.stops.includes(index)) answer.stop();
  }
  const all = results.map(({ content, hash, ends }) => ({
    content,
    sha256: hash?.digest("hex"),
    ends,
  }));
  return { state: answer.state, results: all };
}

async function main() {
  const library = await (await fetch(order.url + "/client.js")).text();
  const { Gateway } = await import("data:text/javascript," + encodeURIComponent(library));
  const gateway = new Gateway({ url: order.url, WebSocket: Cut });
  const answers = await Promise.all(order.tasks.map((task, index) => listen(gateway, task, index)));
  console.log(JSON.stringify({ answers, queries: Cut.queries }));
}

main();
