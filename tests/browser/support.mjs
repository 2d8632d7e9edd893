// Helpers for the tests of both pages.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { start } from "../service.mjs";
import { Browser, find } from "./chromium.mjs";

const program = find();
assert(program || process.env.CI !== "true", "CI must have Chromium");

let browser;
let service;

if (program) {
  before(async () => {
    [browser, service] = await Promise.all([Browser.launch(program), start()]);
  });
  after(() => Promise.all([browser?.close(), service?.stop()]));
}

export const photo = (name) => fileURLToPath(new URL(`../fixtures/${name}`, import.meta.url));

/// Defines a test with a new page, against the sandbox or a service that the options name. At its
/// end the page must have requested nothing from elsewhere, and the console must be clean.
export function pageTest(name, options, work) {
  if (!work) [options, work] = [{}, options];
  const skip = !program && "there is no Chromium on this machine";
  test(name, { skip }, async (context) => {
    const target = options.service ? await options.service(context) : service;
    if (!target) return; // skipped; the context has the reason
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

/// Starts a service with a key for NVIDIA. No test makes it use the key.
export const withoutSandbox = () => start({ IMAGESVC_SANDBOX: "false", NVIDIA_API_KEY: "nvapi-of-a-test" });
