// Node's fetch with FormData, whose requests are like those of browsers and React Native.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { Readable } from "node:stream";

const { IMAGESVC_URL: url, IMAGESVC_PHOTO: photo } = process.env;

/// Sends a request that must succeed, and returns the answer.
async function post(route, body, options = {}) {
  const response = await fetch(url + route, { method: "POST", body, ...options });
  const answer = await response.json();
  assert.equal(response.status, 200, JSON.stringify(answer));
  assert.equal(answer.vector.length, 1536);
  assert(answer.vector.every(Number.isFinite));
  assert.match(answer.saved_as, /^[0-9a-f-]{36}\.jpg$/);
  assert(response.headers.get("x-request-id"));
  return answer;
}

const bytes = await readFile(photo);
// fetch sends this string as text/plain.
await post("/vectorize-image", JSON.stringify({ image_url: `${url}/sandbox/photo.jpg` }));
await post("/vectorize-image-base64", JSON.stringify({ image_base64: bytes.toString("base64"), filename: "a.jpg" }), { headers: { "Content-Type": "application/json" } });

const form = new FormData();
form.append("note", "before the picture");
form.append("file", new Blob([bytes], { type: "image/jpeg" }), "Foto größer.jpg");
assert.equal((await post("/vectorize-image-upload", form)).original_filename, "Foto größer.jpg");

// fetch sends a stream with chunked transfer encoding. A `Response` turns the form into a stream.
const encodedForm = new Response(form);
await post("/vectorize-image-upload", Readable.toWeb(Readable.from(encodedForm.body)), { duplex: "half", headers: { "Content-Type": encodedForm.headers.get("content-type") } });
