// Headless Chromium, driven over standard input: one JSON order a line (`goto`, `reload`, `evaluate`, `keys`, `file`, `axe`,
// `screenshot`, `complaints`, `console_errors`), one JSON answer a line.
// It only ever opens pages of this machine; the flags keep it from asking anybody else anything. The arguments are names that the
// browser takes for this machine's, although they are not `localhost`.
"use strict";
const readline = require("readline");
const axe = require("axe-core");
const { chromium } = require("playwright-core");

const EXECUTABLE = process.env.CHROMIUM || "/usr/bin/chromium";
const NAMES = ["elsewhere.test", ...process.argv.slice(2)];

async function main() {
  const browser = await chromium.launch({
    executablePath: EXECUTABLE,
    args: [
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
      "--disable-dev-shm-usage",
      // A microphone that beeps, and is always allowed.
      "--use-fake-device-for-media-stream",
      "--use-fake-ui-for-media-stream",
      // A page that is not from this machine, as far as the browser knows.
      "--host-resolver-rules=" + NAMES.map((name) => `MAP ${name} 127.0.0.1`).join(","),
    ],
  });
  let page = await browser.newPage();
  let complaints = watch(page);
  console.log(JSON.stringify({ event: "ready", version: browser.version() }));

  for await (const line of readline.createInterface({ input: process.stdin })) {
    const order = JSON.parse(line);
    let answer;
    try {
      if (order.do === "goto") {
        await page.close();
        page = await browser.newPage(order.look || {});
        complaints = watch(page);
        const response = await page.goto(order.url);
        answer = { status: response && response.status(), title: await page.title() };
      } else if (order.do === "evaluate") {
        answer = { value: await page.evaluate(order.script) };
      } else if (order.do === "keys") {
        for (const key of order.keys) {
          if (key.press) await page.keyboard.press(key.press);
          else await page.keyboard.type(key.type);
        }
        answer = { value: true };
      } else if (order.do === "reload") {
        await page.reload();
        answer = { value: true };
      } else if (order.do === "file") {
        const buffer = Buffer.from(order.data, "base64");
        await page.setInputFiles(order.selector, { name: order.name, mimeType: "application/octet-stream", buffer });
        answer = { value: true };
      } else if (order.do === "axe") {
        await page.evaluate(axe.source);
        const found = await page.evaluate(() => window.axe.run({ resultTypes: ["violations"] }));
        const say = ({ id, help, nodes }) => `${id}: ${help}: ` + nodes.map((node) => node.html + " " + node.failureSummary).join(" | ");
        answer = { value: found.violations.map(say) };
      } else if (order.do === "screenshot") {
        await page.screenshot({ path: order.path, fullPage: true });
        answer = { value: true };
      } else if (order.do === "complaints") {
        answer = { value: complaints };
      } else if (order.do === "console_errors") {
        answer = { value: complaints.console };
      } else {
        answer = { failed: "unknown order " + order.do };
      }
    } catch (error) {
      answer = { failed: String(error) };
    }
    console.log(JSON.stringify({ order: order.order, ...answer }));
  }
  await browser.close();
}

// What the page itself got wrong: uncaught errors, what its own policy forbids, and requests that left this machine.
function watch(page) {
  const seen = [];
  // What the browser itself reports, failed requests included.
  seen.console = [];
  page.on("console", (message) => {
    if (message.type() === "error") seen.console.push(message.text());
  });
  page.on("pageerror", (error) => seen.push("error: " + error.message));
  page.on("console", (message) => {
    if (/Content Security Policy/i.test(message.text())) seen.push("policy: " + message.text());
  });
  page.on("request", (request) => {
    const host = new URL(request.url()).hostname;
    if (!["127.0.0.1", "localhost", "", ...NAMES].includes(host)) seen.push("foreign request: " + request.url());
  });
  return seen;
}

main().catch((error) => {
  console.log(JSON.stringify({ event: "failed", failed: String(error) }));
  process.exit(1);
});
