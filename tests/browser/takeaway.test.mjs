// What people take away from the home page: vectors, files and commands. The page itself stores nothing.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { copyFile, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

import { start } from "../service.mjs";
import { choose, pageTest, photo, wall } from "./support.mjs";

const vectorOf = (page) => page.run(() => JSON.parse(document.querySelector("#vector").textContent));

pageTest("the vector of the chosen picture is copied, also where the browser has no clipboard object", async (page, service) => {
  await page.browser.send("Browser.grantPermissions", { permissions: ["clipboardReadWrite", "clipboardSanitizedWrite"], browserContextId: page.browserContextId });
  await page.open(service.url);
  await choose(page, "rocket.jpg");
  await wall(page, 1);
  const vector = await vectorOf(page);
  await page.run(() => {
    window.copied = [];
    document.addEventListener("copy", () => window.copied.push(document.activeElement.value));
    Object.defineProperty(navigator, "clipboard", { value: { writeText: async (text) => window.copied.push(text) }, configurable: true });
  });
  const copied = (count) => page.until("a copy", (count) => window.copied.length === count && document.querySelector("#status").textContent, count);
  await page.click("#copy");
  assert.equal(await copied(1), "Copied: the vector of rocket.jpg");
  await page.run(() => Object.defineProperty(navigator, "clipboard", { value: undefined }));
  await page.click("#copy");
  await copied(2);
  assert.equal(await page.run(() => document.activeElement.id), "copy", "the focus should return to the button");
  const texts = await page.run(() => window.copied);
  for (const text of texts) assert.deepEqual(JSON.parse(text), vector);
});

/// Chooses rocket.jpg, and a picture whose name has a comma and quotes. Then calls `work` with this name and
/// the folder of the picture.
async function openTwo(page, service, work) {
  const folder = await mkdtemp(join(tmpdir(), "names-"));
  const name = `it's "2", ok; a\\b.png`;
  try {
    await copyFile(photo("chelsea.png"), join(folder, name));
    await page.open(service.url);
    await choose(page, "rocket.jpg", join(folder, name));
    await wall(page, 2);
    await work(name, folder);
  } finally {
    await rm(folder, { recursive: true });
  }
}

/// Chooses a picture on the wall.
const select = async (page, name) => {
  await page.run((name) => [...document.querySelectorAll(".choose")].find((element) => element.title === name).click(), name);
  await page.until("the choice", (name) => document.querySelector("#left figcaption").textContent === name, name);
};

pageTest("all vectors are downloaded as JSONL and as CSV", async (page, service) => {
  await openTwo(page, service, async (name) => {
    const vectors = {};
    for (const each of ["rocket.jpg", name]) {
      await select(page, each);
      vectors[each] = await vectorOf(page);
    }
    const jsonl = await page.browser.download(page, () => page.click("#jsonl"));
    assert.equal(jsonl.name, "vectors.jsonl");
    const rows = jsonl.text.trimEnd().split("\n").map((line) => JSON.parse(line));
    assert.deepEqual(Object.fromEntries(rows.map((row) => [row.path, row.vector])), vectors);
    const rocket = rows.find((row) => row.path === "rocket.jpg");
    assert.deepEqual([rocket.model, rocket.prepared, rocket.width, rocket.height, rocket.sha256.length], ["sandbox/perceptual", "original", 640, 427, 64]);

    const csv = await page.browser.download(page, () => page.click("#csv"));
    assert.equal(csv.name, "vectors.csv");
    const [head, ...lines] = csv.text.trimEnd().split("\r\n");
    assert.deepEqual([lines.length, head.split(",").length], [2, 8 + 1536]);
    assert.match(head, /^picture,saved_as,sha256,model,prepared,content_type,width,height,v0,v1,.*,v1535$/);
    for (const line of lines) {
      const isRocket = line.startsWith("rocket.jpg,");
      assert(isRocket || line.startsWith(`"it's ""2"", ok; a\\b.png",`), line.slice(0, 60));
      assert.deepEqual(line.split(",").slice(-1536).map(Number), vectors[isRocket ? "rocket.jpg" : name]);
    }
  });
});

const run = async (command, cwd) => JSON.parse((await promisify(execFile)("sh", ["-c", command], { cwd, maxBuffer: 1 << 24 })).stdout);
const commandOf = (page) => page.run(() => document.querySelector("#curl").textContent);

pageTest("the shown curl command gets the same vector, whatever the file's name", async (page, service) => {
  await openTwo(page, service, async (name, folder) => {
    await select(page, name);
    const answer = await run(await commandOf(page), folder);
    assert.deepEqual([answer.vector, answer.width], [await vectorOf(page), 451]);
  });
  await page.fill("#address", `${service.url}/sandbox/photo.jpg?it's`);
  await page.press("Enter");
  await wall(page, 3);
  await select(page, `${service.url}/sandbox/photo.jpg?it's`);
  assert.deepEqual((await run(await commandOf(page))).vector, await vectorOf(page));
});

const API_KEY = "a-key-of-the-browser-test-0123456789abcdef";

pageTest("with a key, the command has a placeholder for it and not the key", { service: () => start({ IMAGESVC_API_KEYS: API_KEY }) }, async (page, service) => {
  await page.open(service.url);
  await choose(page, "rocket.jpg");
  await page.expectFailure(401);
  await page.fill("#key", API_KEY);
  await page.press("Enter");
  await wall(page, 1);
  assert.equal(await commandOf(page), `curl -H "Authorization: Bearer YOUR_API_KEY" -F 'file=@"rocket.jpg"' '${service.url}/vectorize-image-upload'`);
  assert.equal(await page.run((key) => document.documentElement.outerHTML.includes(key), API_KEY), false);
});

pageTest("the browser asks before vectors are lost, and only then; the page stores nothing", async (page, service) => {
  await page.open(service.url);
  await page.click("h1"); // without a click the browser would never ask
  await page.open(service.url);
  assert.deepEqual(page.dialogs, []);
  await choose(page, "rocket.jpg");
  await wall(page, 1);
  assert.deepEqual(await page.run(async () => [localStorage.length, sessionStorage.length, (await indexedDB.databases()).length, (await caches.keys()).length]), [0, 0, 0, 0]);
  assert.deepEqual((await page.send("Network.getCookies")).cookies, []);
  await page.open(service.url);
  assert.deepEqual(page.dialogs, ["beforeunload"]);
});
