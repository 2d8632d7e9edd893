// The interactive API page at `/docs`.

import assert from "node:assert/strict";

import { pageTest, photo, withoutSandbox } from "./support.mjs";

const blockOf = (operation) => `.opblock[id$="-${operation}"]`;

/// Opens the page, and the form of an operation in it.
async function open(page, service, operation) {
  await page.open(`${service.url}/docs`);
  await page.click(`${blockOf(operation)} .opblock-summary-control`);
  // The button appears before the field, and has no effect until the field exists.
  await page.until("the form", (block) => document.querySelector(`${block} :is(textarea, input[type=file])`), blockOf(operation));
}

/// Clicks the button, and reads the answer from the page.
async function execute(page, operation) {
  await page.click(`${blockOf(operation)} .execute`);
  const shown = await page.until("the answer", (block) => {
    const row = document.querySelector(`${block} .live-responses-table tbody .response`);
    const body = row?.querySelector(".highlight-code pre, pre.microlight")?.textContent;
    return body && { status: row.querySelector(".response-col_status").innerText.trim(), body };
  }, blockOf(operation));
  return { status: shown.status.split(/\s/)[0], ...JSON.parse(shown.body) };
}

function assertVector(answer) {
  assert.equal(answer.status, "success");
  assert.equal(answer.model, "sandbox/perceptual");
  assert.equal(answer.vector.length, 1536);
  assert(answer.vector.every(Number.isFinite));
}

pageTest("the docs page lists every route", async (page, service) => {
  await page.open(`${service.url}/docs`);
  const routes = await page.until("the routes", () => {
    const shown = [...document.querySelectorAll(".opblock-summary")];
    return shown.length && shown.map((summary) => `${summary.querySelector(".opblock-summary-method").innerText} ${summary.querySelector(".opblock-summary-path").dataset.path}`);
  });
  assert.deepEqual(routes.sort(), ["GET /health", "GET /metrics", "GET /ready", "GET /v1/models", "GET /v1/models/{id}", "POST /v1/embeddings", "POST /vectorize-image", "POST /vectorize-image-base64", "POST /vectorize-image-upload"]);
});

pageTest("a request with the prefilled URL gets a vector", async (page, service) => {
  await open(page, service, "vectorize_image");
  const answer = await execute(page, "vectorize_image");
  assertVector(answer);
  assert.equal(answer.source_url, `${service.url}/sandbox/photo.jpg`);
});

pageTest("a request with the prefilled Base64 gets a vector", async (page, service) => {
  await open(page, service, "vectorize_image_base64");
  const answer = await execute(page, "vectorize_image_base64");
  assertVector(answer);
  assert.deepEqual([answer.content_type, answer.width, answer.height], ["image/gif", 1, 1]);
});

pageTest("a request with the prefilled batch gets two vectors", async (page, service) => {
  await open(page, service, "embeddings");
  const answer = await execute(page, "embeddings");
  assert.equal(answer.model, "sandbox/perceptual");
  assert.deepEqual(answer.data.map((entry) => [entry.index, entry.embedding.length]), [[0, 1536], [1, 1536]]);
});

pageTest("an uploaded photograph gets a vector", async (page, service) => {
  await open(page, service, "vectorize_image_upload");
  await page.choose(() => page.click(`${blockOf("vectorize_image_upload")} input[type=file]`), photo("rocket.jpg"));
  const answer = await execute(page, "vectorize_image_upload");
  assertVector(answer);
  assert.deepEqual([answer.original_filename, answer.width, answer.height], ["rocket.jpg", 640, 427]);
});

pageTest("without the sandbox the prefilled URL is public", { service: withoutSandbox }, async (page, service) => {
  await open(page, service, "vectorize_image");
  const body = await page.run((block) => document.querySelector(`${block} textarea`).value, blockOf("vectorize_image"));
  assert.match(JSON.parse(body).image_url, /^https:/);
});
