// Runs the JavaScript samples of README.md and docs/api.md unchanged, except for the host.

import assert from "node:assert/strict";
import { File } from "node:buffer";
import { readFile } from "node:fs/promises";

const { IMAGESVC_URL: service, IMAGESVC_PHOTO: path } = process.env;
const photo = new File([await readFile(path)], "photo.jpg", { type: "image/jpeg" });

async function sample(page) {
  const text = await readFile(new URL(`../../${page}`, import.meta.url), "utf8");
  const [, ...blocks] = text.split("```js\n");
  assert.equal(blocks.length, 1, page);
  return blocks[0].split("```")[0].replaceAll("https://images.example.com", service);
}

const load = async (code) => import(`data:text/javascript,${encodeURIComponent(code)}`);

const { vectorize } = await load(await sample("docs/api.md"));
assert.equal((await vectorize(photo)).vector.length, 1536);
assert.equal((await vectorize(photo, { service, key: "ignored, since the service has no client keys" })).original_filename, "photo.jpg");
await assert.rejects(vectorize(new Blob(["no picture"])), /unsupported_image: /);

const { lengths } = await load(`export async function lengths(photo) {
  const lengths = [];
  const console = { log: (length) => lengths.push(length) };
  ${await sample("README.md")}
  return lengths;
}`);
assert.deepEqual(await lengths(photo), [1536]);
