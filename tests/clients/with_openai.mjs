// Node, openai: Base64, which it requests by default, and floats.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import OpenAI from "openai";

const { IMAGESVC_URL, IMAGESVC_KEYED_URL, IMAGESVC_KEY } = process.env;
const model = "nvidia/nv-dinov2";
const fixture = (name) => readFile(new URL(`../fixtures/${name}`, import.meta.url), "base64");
// A picture as a data: URL, and another as bare Base64.
const photo = `data:image/jpeg;base64,${await fixture("formats/plain.jpg")}`;
const cat = await fixture("chelsea.png");

for (const [url, apiKey] of [[IMAGESVC_URL, "any"], [IMAGESVC_KEYED_URL, IMAGESVC_KEY]]) {
  // Without retries, a failure shows at once.
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
  const embed = async (input, options = {}) => {
    const { data } = await client.embeddings.create({ model, input, ...options });
    assert.deepEqual(data.map(({ index }) => index), [...data.keys()]);
    return data.map(({ embedding }) => embedding);
  };
  /// Returns the vector of a picture by a route for single pictures.
  const vectorBy = async (route, body) => {
    const response = await fetch(url + route, { method: "POST", headers: { Authorization: `Bearer ${apiKey}` }, body: JSON.stringify(body) });
    return (await response.json()).vector;
  };

  const pictures = [photo, `${url}/sandbox/photo.jpg`, cat];
  // The vectors of the same pictures by the routes for single pictures.
  const references = [
    await vectorBy("/vectorize-image-base64", { image_base64: photo }),
    await vectorBy("/vectorize-image", { image_url: pictures[1] }),
    await vectorBy("/vectorize-image-base64", { image_base64: cat }),
  ];
  assert.notDeepEqual(references[0], references[2]);
  const batch = await embed(pictures);
  assert(batch.every((vector) => vector.length === 1536));
  // Base64 contains 32-bit floats.
  assert.deepEqual(batch, references.map((vector) => [...Float32Array.from(vector)]));
  assert.deepEqual(await embed(pictures, { encoding_format: "float" }), references);
  for (const [index, picture] of pictures.entries()) {
    assert.deepEqual(await embed(picture), [batch[index]]);
    assert.deepEqual(await embed(picture, { encoding_format: "float" }), [references[index]]);
  }

  await assert.rejects(embed([photo, "a photo of a cat"]), (error) => {
    assert(error instanceof OpenAI.UnprocessableEntityError);
    assert.match(error.message, /^422 input\[1\] is text, but this model embeds pictures only: send /);
    assert.deepEqual([error.param, error.code, error.type], ["input[1]", "validation_failed", "invalid_request_error"]);
    assert(error.requestID);
    return true;
  });
  // By default the package requests Base64 and decodes every entry, so it fails at an entry without an
  // embedding. This request asks for floats instead.
  const pictureAndText = { model, input: [photo, "a photo of a cat"], encoding_format: "float" };
  const { data } = await client.embeddings.create(pictureAndText, { query: { errors: "item" } });
  assert.equal(data[0].embedding.length, 1536);
  assert.deepEqual([data[1].object, data[1].embedding, data[1].error.param], ["error", undefined, "input[1]"]);
  // The service accepts 32 pictures in a batch.
  await assert.rejects(embed(Array(33).fill(photo)), /^(\w+: )?422 The list input has 33 pictures/);
}

const clientWithWrongKey = new OpenAI({ baseURL: `${IMAGESVC_KEYED_URL}/v1`, apiKey: "wrong", maxRetries: 0 });
await assert.rejects(clientWithWrongKey.embeddings.create({ model, input: photo }), (error) => {
  assert(error instanceof OpenAI.AuthenticationError);
  assert.match(error.message, /^401 This service requires a key/);
  return true;
});
