// Runs the JavaScript and Python samples of README.md and docs/api.md unchanged, except for the host.

import assert from "node:assert/strict";
import { File } from "node:buffer";
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const { IMAGESVC_URL: service, IMAGESVC_PHOTO: path, PYTHON: python } = process.env;
const photo = new File([await readFile(path)], "photo.jpg", { type: "image/jpeg" });

/// Returns the blocks of code in this language on a Markdown page. Their hosts are replaced by the tested
/// service.
async function samples(page, language) {
  const text = await readFile(new URL(`../../${page}`, import.meta.url), "utf8");
  const [, ...blocks] = text.split("```" + language + "\n");
  return blocks.map((block) => block.split("```")[0].replaceAll(/https:\/\/images.example.com|http:\/\/localhost:8000/g, service));
}

/// Imports code as a module.
const load = async (code) => import(`data:text/javascript,${encodeURIComponent(code)}`);

const [vectorizeSample, ...otherApiSamples] = await samples("docs/api.md", "js");
assert.equal(otherApiSamples.length, 0, "this test must run all samples");
const { vectorize } = await load(vectorizeSample);
assert.equal((await vectorize(photo)).vector.length, 1536);
assert.equal((await vectorize(photo, { service, key: "ignored, since the service has no client keys" })).original_filename, "photo.jpg");
await assert.rejects(vectorize(new Blob(["no picture"])), /unsupported_image: /);

const [uploadSample, nodeSample, ...otherNodeSamples] = await samples("README.md", "js");
const [pythonSample, ...otherPythonSamples] = await samples("README.md", "python");
assert.equal(otherNodeSamples.length + otherPythonSamples.length, 0, "this test must run all samples");
// `uploadSample` uses a variable `photo`, and prints the length of the vector.
const { printedBySample } = await load(`export async function printedBySample(photo) {
  const printed = [];
  const console = { log: (length) => printed.push(length) };
  ${uploadSample}
  return printed;
}`);
assert.deepEqual(await printedBySample(photo), [1536]);

// The samples with OpenAI's packages are programs for the repository's root. They run in a folder that has
// the root's `tests`, and the installed packages.
const root = await mkdtemp(join(tmpdir(), "pasted-"));
try {
  await symlink(fileURLToPath(new URL("..", import.meta.url)), join(root, "tests"));
  await symlink(fileURLToPath(new URL("node_modules", import.meta.url)), join(root, "node_modules"));
  await writeFile(join(root, "sample.mjs"), nodeSample);
  await writeFile(join(root, "sample.py"), pythonSample);
  for (const [program, file] of [[process.execPath, "sample.mjs"], [python, "sample.py"]]) {
    const { stdout } = await promisify(execFile)(program, [file], { cwd: root });
    // The index and the length of each vector.
    assert.equal(stdout, "0 1536\n1 1536\n", file);
  }
} finally {
  await rm(root, { recursive: true });
}
