// Publishes through ioredis as a worker would: `node ioredis_publish.js PORT CHANNEL MESSAGE…`, with the client's defaults.
// Prints how many heard each message, and what the first unknown command was answered, as JSON lines.
"use strict";
const Redis = require("ioredis");

async function main() {
  const [port, channel, ...messages] = process.argv.slice(2);
  const redis = new Redis(Number(port), "127.0.0.1");
  for (const message of messages) console.log(JSON.stringify(await redis.publish(channel, message)));
  console.log(JSON.stringify(await redis.ping()));
  console.log(JSON.stringify(await redis.get("a").catch((error) => String(error.message))));
  await redis.quit();
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  }
);
