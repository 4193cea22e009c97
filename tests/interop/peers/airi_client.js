// A module of AIRI on the project's own SDK: authenticates, announces itself, sends a text and prints
// each event that it gets as a line of JSON. Ends after the answer to its text.
"use strict";
const { pathToFileURL } = require("url");

async function main(url, token) {
  // The package is an ES module, which NODE_PATH does not find.
  const sdk = await import(pathToFileURL(require.resolve("@proj-airi/server-sdk")));
  const client = new sdk.Client({ name: "chat", url, token, possibleEvents: ["input:text"], autoReconnect: false });
  client.onEvent("module:authenticated", (event) => {
    console.log(JSON.stringify(event));
    client.send({ type: "input:text", data: { text: "hello" } });
  });
  client.onEvent("output:gen-ai:chat:message", (event) => {
    console.log(JSON.stringify(event));
    client.close();
  });
}

main(...process.argv.slice(2));
