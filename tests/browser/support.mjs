// Helpers for the tests of the home page and of /docs.

import assert from "node:assert/strict";
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

export const photo = (name) => fileURLToPath(new URL(`../fixtures/${name}`, import.meta.url));

/// Defines a test with a new page. `options.service` may start a service; the default is the sandbox. At
/// the end, the page must have requested nothing from other hosts, and the console must be empty.
export function pageTest(name, options, work) {
  if (!work) [options, work] = [{}, options];
  const skip = !program && "Chromium is not installed";
  test(name, { skip }, async (context) => {
    const target = options.service ? await options.service(context) : service;
    if (!target) return; // `options.service` has skipped the test
    try {
      const page = await browser.page(options);
      await work(page, target);
      const origin = `${new URL(target.url).origin}/`;
      const elsewhere = page.requested.filter((url) => !["data:", "blob:", origin].some((start) => url.startsWith(start)));
      assert.deepEqual(elsewhere, []);
      assert.deepEqual(page.complaints, []);
      assert.deepEqual(page.failures, []);
    } finally {
      if (target !== service) await target.stop();
    }
  });
}

/// Starts a service without the sandbox. No test makes it call NVIDIA.
export const withoutSandbox = () => start({ IMAGESVC_SANDBOX: "false", NVIDIA_API_KEY: "nvapi-of-a-test" });
