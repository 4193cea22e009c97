// Listens to control channels through ioredis as a worker would: `node ioredis_subscribe.js PORT PATTERN`, with the client's
// defaults. Prints a line when it listens, and one for each message: channel and payload.
"use strict";
const Redis = require("ioredis");

async function main() {
  const [port, pattern] = process.argv.slice(2);
  const redis = new Redis(Number(port), "127.0.0.1");
  redis.on("pmessage", (_, channel, message) => console.log(`${channel} ${message}`));
  console.log(`listens to ${await redis.psubscribe(pattern)}`);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
