// What the tests of the home page and of /docs share: the browser, the service, and actions on a page.

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { start } from "../service.mjs";
import { Browser, findChromium } from "./chromium.mjs";

const program = findChromium();
assert(program || process.env.CI !== "true", "with CI=true these tests need Chromium");

let browser;
let service;

if (program) {
  before(async () => {
    [browser, service] = await Promise.all([Browser.launch(program), start()]);
  });
  after(() => Promise.all([browser?.close(), service?.stop()]));
}

/// The path of a fixture, such as a photograph.
export const photo = (name) => fileURLToPath(new URL(`../fixtures/${name}`, import.meta.url));

/// Defines a test with a new page. `options.service` may start a service; the default is the sandbox. At
/// the end, the page must have requested nothing from other hosts, and the console must be empty.
export function pageTest(name, options, work) {
  if (!work) [options, work] = [{}, options];
  const skip = (!program && "Chromium is not installed") || options.skip;
  test(name, { skip }, async (context) => {
    const target = options.service ? await options.service(context) : service;
    if (!target) return; // `options.service` has skipped the test
    const page = await browser.page(options);
    try {
      await work(page, target);
      const origin = `${new URL(target.url).origin}/`;
      const elsewhere = page.requested.filter((url) => !["data:", "blob:", origin].some((start) => url.startsWith(start)));
      assert.deepEqual(elsewhere, []);
      assert.deepEqual(page.complaints, []);
      assert.deepEqual(page.failures, []);
    } finally {
      await page.close();
      if (target !== service) await target.stop();
    }
  });
}

/// Adds pictures by the file chooser. Each name is that of a fixture, or an absolute path.
export const choose = (page, ...names) => page.choose(() => page.click("input[name=file]"), ...names.map((name) => (name.startsWith("/") ? name : photo(name))));

/// Waits until the wall has this many pictures, and returns for each its name and its figure, in the wall's order.
export const wall = (page, count) =>
  page.until(`${count} pictures on the wall`, (count) => {
    const tiles = [...document.querySelectorAll("#wall li")];
    const text = (tile, selector) => tile.querySelector(selector).textContent;
    return tiles.length === count && tiles.map((tile) => [text(tile, ".name"), text(tile, ".figure")]);
  }, count);

/// Waits for a row of the queue whose state and details match, and returns both.
export const row = (page, pattern) =>
  page.until(`a row with ${pattern}`, (source) => {
    const texts = [...document.querySelectorAll("#rows li")].map((row) => `${row.querySelector(".state").textContent}\n${row.querySelector(".more").textContent}`);
    return texts.find((text) => new RegExp(source).test(text));
  }, pattern.source);

/// Waits for the box with an error, and returns its text.
export const problem = (page) => page.until("a problem", () => document.querySelector("[role=alert] .problem")?.innerText);

/// The facts about the chosen picture.
export const facts = (page) => page.run(() => Object.fromEntries([...document.querySelectorAll("#about dt")].map((term) => [term.textContent, term.nextSibling.textContent])));

/// Starts a service whose pages come from the sandbox, but whose answers to pictures come from `answer`. This
/// function gets the request's number and its body, and returns `[status, headers, body]` or a promise of them.
export async function scripted(answer, { isSandbox = true } = {}) {
  let calls = 0;
  const server = createServer(async (request, response) => {
    if (request.method === "GET") {
      const page = await fetch(service.url + request.url);
      const text = await page.text();
      const type = { "content-type": page.headers.get("content-type") };
      const policy = page.headers.get("content-security-policy");
      response.writeHead(page.status, policy ? { ...type, "content-security-policy": policy } : type);
      return response.end(isSandbox ? text : text.replace(/data-sample=".*?"/, 'data-sample=""'));
    }
    const parts = [];
    for await (const part of request) parts.push(part);
    const [status, headers, body] = await answer(calls++, Buffer.concat(parts));
    response.writeHead(status, { "content-type": "application/json", ...headers });
    response.end(JSON.stringify(body));
  });
  await once(server.listen(0, "127.0.0.1"), "listening");
  const stop = () => {
    server.closeAllConnections();
    return new Promise((resolve) => server.close(resolve));
  };
  return { url: `http://127.0.0.1:${server.address().port}`, stop };
}

/// An answer with a vector that depends on `number` alone. Vectors whose numbers differ by a multiple of
/// ten are alike.
export function answerWith(number) {
  const vector = Array.from({ length: 1536 }, (_, index) => Number((Math.sin((index + 1) * ((number % 10) + 1)) + 0.2 * Math.sin((index + 1) * (number + 20))).toFixed(5)));
  const facts = { status: "success", content_type: "image/png", width: 8, height: 8, sha256: "0".repeat(64), prepared: "original", model: "scripted", dimensions: 1536 };
  return [200, {}, { ...facts, saved_as: `${number}.png`, vector }];
}

/// Adds `count` small pictures, which the page draws itself, as if they were dropped.
export const dropDrawn = (page, count) =>
  page.run(async (count) => {
    const canvas = new OffscreenCanvas(64, 48);
    const context = canvas.getContext("2d");
    const dataTransfer = new DataTransfer();
    for (let number = 0; number < count; number++) {
      context.fillStyle = `hsl(${(number % 10) * 36} 70% ${40 + number / 10}%)`;
      context.fillRect(0, 0, 64, 48);
      dataTransfer.items.add(new File([await canvas.convertToBlob()], `${number}.png`, { type: "image/png" }));
    }
    document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
  }, count);

/// Starts a service without the sandbox. No test makes it call NVIDIA.
export const withoutSandbox = () => start({ IMAGESVC_SANDBOX: "false", NVIDIA_API_KEY: "nvapi-of-a-test" });
