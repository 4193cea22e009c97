// Takes a picture of the demo's page after an answer. `contrib/pictures` calls it with the page's
// address, a language and the picture's path.
"use strict";
const { chromium } = require("playwright-core");

const SIZE = { width: 1100, height: 960 };

async function main(address, locale, picture) {
  const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
  const page = await browser.newPage({ viewport: SIZE, colorScheme: "light", locale });
  await page.goto(address);
  const text = page.locator("textarea").first();
  await text.fill("Hello, gateway!");
  await text.press("Enter");
  await page.locator("audio").first().waitFor();
  // The charts have something to show by then.
  await page.waitForTimeout(8000);
  await page.evaluate(() => window.scrollTo(0, 0));
  await page.screenshot({ path: picture });
  await browser.close();
}

main(...process.argv.slice(2));
