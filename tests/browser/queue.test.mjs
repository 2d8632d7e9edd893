// The queue of the home page: how many pictures it sends at once, progress, waiting, failures and saving data.

import assert from "node:assert/strict";

import { answerWith, choose, dropDrawn, facts, pageTest, problem, row, scripted, wall } from "./support.mjs";

const problemOf = (status, code, detail) => ({ status, code, detail, request_id: `id-of-${code}` });
const tooBusy = (seconds, status = 503) => [status, { "retry-after": String(seconds) }, problemOf(status, "overloaded", "Too busy.")];

/// A service that answers no request before `release` is called. `mostWaiting` returns how many requests
/// it had received until then.
function held() {
  const waiting = [];
  const state = { isReleased: false, mostWaiting: 0 };
  const release = () => {
    state.isReleased = true;
    for (const resolve of waiting.splice(0)) resolve();
  };
  const service = () => scripted(async (number) => {
    if (!state.isReleased) await new Promise((resolve) => { state.mostWaiting = waiting.push(resolve); });
    return answerWith(number);
  }, { isSandbox: false });
  return { service, release, mostWaiting: () => state.mostWaiting };
}

const states = (page) => page.run(() => [...document.querySelectorAll("#rows .state")].map((element) => element.textContent));

const holding = held();
pageTest("at most three pictures are sent at once, and each shows its state", { service: holding.service }, async (page, service) => {
  await page.open(service.url);
  await dropDrawn(page, 5);
  await page.until("three waiting pictures", () => [...document.querySelectorAll("#rows .state")].filter((element) => element.textContent === "Waiting for NVIDIA").length === 3);
  await page.until("two pictures in the queue", () => [...document.querySelectorAll("#rows .state")].filter((element) => element.textContent === "In the queue").length === 2);
  assert.deepEqual(await states(page), [...Array(3).fill("Waiting for NVIDIA"), ...Array(2).fill("In the queue")]);
  assert.equal(await page.run(() => document.querySelector("#queue-title").textContent), "5 on the way");
  assert.equal(await page.run(() => document.querySelector("#status").textContent), "5 pictures added.");
  // A picture that is removed gets no vector, and makes room for the next one.
  await page.click("#rows li [data-do=remove]");
  await page.until("four rows", () => document.querySelectorAll("#rows li").length === 4);
  assert.equal(await page.run(() => document.activeElement.ariaLabel), "Remove: 1.png");
  holding.release();
  assert.deepEqual((await wall(page, 4)).map(([name]) => name).sort(), ["1.png", "2.png", "3.png", "4.png"]);
  // Three at once, and one in place of the removed picture.
  assert(holding.mostWaiting() <= 4, `${holding.mostWaiting()} requests were sent`);
});

pageTest("an upload shows how much is sent", { service: () => scripted((number) => answerWith(number)) }, async (page, service) => {
  await page.open(service.url);
  await page.send("Network.emulateNetworkConditions", { offline: false, latency: 0, downloadThroughput: -1, uploadThroughput: 300_000 });
  await choose(page, "hubble_deep_field.jpg");
  await page.until("a part that is sent", () => {
    const progress = document.querySelector("#rows progress");
    return progress?.checkVisibility() && progress.value > 0 && progress.value < 1 && progress.ariaLabel === "Sending hubble_deep_field.jpg";
  });
  await page.send("Network.emulateNetworkConditions", { offline: false, latency: 0, downloadThroughput: -1, uploadThroughput: -1 });
  await wall(page, 1);
});

for (const status of [503, 429]) {
  pageTest(`after a ${status} with Retry-After the queue counts down and goes on by itself`, { service: () => scripted((number) => (number === 0 ? tooBusy(2, status) : answerWith(number))) }, async (page, service) => {
    await page.open(service.url);
    await dropDrawn(page, 1);
    await row(page, /The service is busy\. Next try in 2 s/);
    // Others wait as well.
    await dropDrawn(page, 1);
    await page.until("a picture in the queue", () => [...document.querySelectorAll("#rows .state")].some((element) => element.textContent === "In the queue"));
    await row(page, /The service is busy\. Next try in 1 s/);
    await wall(page, 2);
    await page.expectFailure(status);
    assert.equal(await page.run(() => document.querySelector("#problem").innerText), "");
  });
}

pageTest("a picture that fails says why and can be tried again, and a wait of an hour is a failure", { service: () => scripted((number) => [
  [422, {}, problemOf(422, "embedding_rejected", "NVIDIA rejects this picture.")],
  tooBusy(3600),
  [502, { "content-type": "text/html" }, null],
][number] ?? answerWith(number)) }, async (page, service) => {
  await page.open(service.url);
  const failures = [
    [422, /^NVIDIA rejects this picture\.\n422 embedding_rejected · request id id-of-embedding_rejected$/],
    [503, /^Too busy\.\n503 overloaded · request id id-of-overloaded$/],
    [502, /^The answer does not come from this service\.\n502 $/],
  ];
  await dropDrawn(page, 1);
  for (const [status, text] of failures) {
    await row(page, text);
    await page.expectFailure(status);
    assert.match(await problem(page), /1 of the pictures failed/);
    await page.click("#rows [data-do=retry]");
  }
  await wall(page, 1);
  assert.equal(await page.run(() => document.querySelector("#problem").innerText), "");
  assert.equal(await page.run(() => document.querySelector("#queue").hidden), true);
});

pageTest("more pictures than the page holds are left out, and the page says so", { service: held().service }, async (page, service) => {
  await page.open(service.url);
  await dropDrawn(page, 303);
  assert.match(await problem(page), /^This page holds 300 pictures, so 3 were left out\. .* imagesvc embed\.$/);
  assert.equal(await page.run(() => document.querySelectorAll("#rows li").length), 300);
});

/// Drops a JPEG of 1500 × 1000 pixels that is to be turned by 90 degrees (EXIF orientation 6).
const dropTurnedPhoto = (page) =>
  page.run(async () => {
    const canvas = new OffscreenCanvas(1500, 1000);
    const context = canvas.getContext("2d");
    for (let stripe = 0; stripe < 1500; stripe += 25) {
      context.fillStyle = `hsl(${stripe * 7} 80% 50%)`;
      context.fillRect(stripe, 0, 25, 1000);
    }
    const jpeg = new Uint8Array(await (await canvas.convertToBlob({ type: "image/jpeg", quality: 1 })).arrayBuffer());
    const exif = [0xff, 0xe1, 0, 34, ...new TextEncoder().encode("Exif\0\0MM\0*"), 0, 0, 0, 8, 0, 1, 0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0];
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([jpeg.slice(0, 2), new Uint8Array(exif), jpeg.slice(2)], "turned.jpeg", { type: "image/jpeg" }));
    document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
  });

pageTest("to save data, a large photograph is sent smaller and upright, and a small one as it is", async (page, service) => {
  await page.open(service.url);
  await dropTurnedPhoto(page);
  await wall(page, 1);
  assert.deepEqual([(await facts(page)).Picture, (await facts(page)).Sent], ["image/jpeg, 1500 × 1000", undefined]);
  await page.click("#shrink");
  assert.match(await page.run(() => document.querySelector("#shrink").labels[0].innerText), /vectors then differ slightly/);
  for (const drop of [() => dropTurnedPhoto(page), () => choose(page, "rocket.jpg")]) await drop();
  const shown = await wall(page, 3);
  assert.equal(shown[1][0], "turned.jpeg", "the smaller copy should be most similar");
  assert(Number(shown[1][1]) > 0.95, shown[1][1]);
  await page.click("#wall li:nth-child(2) .choose");
  // 1500 × 1000 pixels, turned and scaled down to 1024 pixels at the longer side.
  await page.until("the facts", () => document.querySelector("#about dl").textContent.includes("683"));
  const sent = await facts(page);
  assert.equal(sent.Picture, "image/jpeg, 683 × 1024");
  assert.match(sent.Sent, /^\d+ kB instead of \d+ kB$/);
  await page.click("#wall li:nth-child(3) .choose");
  await page.until("the facts", () => document.querySelector("#about dl").textContent.includes("640 × 427"));
  assert.equal((await facts(page)).Sent, undefined);
});
