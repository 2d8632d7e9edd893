// The wall of the home page, two pictures side by side, and the map: by mouse, touch and keyboard.

import assert from "node:assert/strict";

import { answerWith, choose, dropDrawn, pageTest, scripted, wall } from "./support.mjs";

const SAMPLES = ["photo.jpg", "photo-cropped-and-darker.jpg", "landscape.jpg"];
const chosen = (page) => page.run(() => document.querySelector("[aria-current] .name").textContent);
const status = (page) => page.run(() => document.querySelector("#status").textContent);

pageTest("three samples show at once that similar pictures have similar vectors", async (page, service) => {
  await page.open(service.url);
  await page.click("#samples");
  const [first, second, third] = await wall(page, 3);
  assert.deepEqual([first[0], second[0], third[0]], SAMPLES);
  assert(Number(second[1]) > 0.95 && Number(third[1]) < 0.9, `${second} ${third}`);
  assert.equal(await page.run(() => document.querySelector("#right figcaption").textContent), "photo-cropped-and-darker.jpg");
  await page.click("#wall li:nth-child(1) .choose");
  assert.equal(await status(page), `Ordered by similarity to photo.jpg. Most similar: photo-cropped-and-darker.jpg, ${second[1]}.`);
  const bars = await page.run(() => [...document.querySelectorAll("#wall .bar i")].map((element) => element.getBoundingClientRect().width / element.parentElement.getBoundingClientRect().width));
  assert.equal(bars[0], 1);
  assert(Math.abs(bars[1] - second[1]) < 0.02 && Math.abs(bars[2] - Math.max(0, third[1])) < 0.02, String(bars));
});

/// The sum of the opacities in the drawing of the differences.
const ink = (page) => page.run(() => {
  const canvas = document.querySelector("#difference");
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  return copy.getImageData(0, 0, canvas.width, canvas.height).data.filter((_, index) => index % 4 === 3).reduce((sum, alpha) => sum + alpha, 0);
});

pageTest("another picture can be compared, and the drawing shows how much the vectors differ", async (page, service) => {
  await page.open(service.url);
  await choose(page, "rocket.jpg", "rocket.jpg", "chelsea.png");
  await wall(page, 3);
  await page.click("#wall li:has([title='rocket.jpg']) .choose");
  await page.until("the same picture", () => document.querySelector("#similarity").textContent === "Cosine similarity: 1.00");
  assert.equal(await ink(page), 0, "equal vectors should have no difference");
  await page.click("#wall li:has([title='chelsea.png']) .compare");
  await page.until("the other picture", () => document.querySelector("#right figcaption").textContent === "chelsea.png");
  const figure = (await wall(page, 3))[2][1];
  assert.equal(await page.run(() => document.querySelector("#similarity").textContent), `Cosine similarity: ${figure}`);
  assert.equal(await status(page), `Compared with chelsea.png: ${figure}`);
  assert(await ink(page) > 10_000);
  assert.match(await page.run(() => document.querySelector("#difference").ariaLabel), /^The differences: 1536 numbers, from -\d\.\d{4} to \d\.\d{4}$/);
});

pageTest("by keyboard alone, pictures are added, chosen, compared and removed, and the focus stays", { motion: "reduce" }, async (page, service) => {
  await page.open(service.url);
  const focusOn = (selector) => page.run((selector) => document.querySelector(selector).focus(), selector);
  await focusOn("#samples");
  await page.press("Enter");
  await wall(page, 3);
  await focusOn("#wall li:nth-child(3) .choose");
  const name = await page.run(() => document.activeElement.title);
  await page.press("Enter");
  await page.until("the choice", (name) => document.querySelector("#left figcaption").textContent === name, name);
  assert.deepEqual(await page.run(() => [document.activeElement.title, document.activeElement.ariaCurrent]), [name, "true"]);
  await page.press("Tab"); // the second picture
  await page.press("Tab"); // its button to compare
  const other = await page.run(() => document.activeElement.ariaLabel);
  await page.press("Space");
  await page.until("the other picture", (other) => `Compare: ${document.querySelector("#right figcaption").textContent}` === other, other);
  assert.equal(await page.run(() => document.activeElement.ariaLabel), other);
  await focusOn("#remove");
  await page.press("Enter");
  // The picture that was compared is now the chosen one. It is not compared with itself.
  const [[first], [second]] = await wall(page, 2);
  assert.deepEqual(await page.run(() => ["left", "right"].map((id) => document.querySelector(`#${id} figcaption`).textContent)), [first, second]);
  assert.equal(await page.run(() => document.activeElement.classList.contains("choose")), true);
  assert.equal(await status(page), `Removed: ${name}`);
  for (const remaining of [1, 0]) {
    await focusOn("#remove");
    await page.press("Enter");
    await page.until(`${remaining} pictures`, (remaining) => (remaining ? document.querySelectorAll("#wall li").length === remaining : document.querySelector("#results").hidden), remaining);
  }
  assert.equal(await page.run(() => document.activeElement.name), "file");
  assert.equal(await page.run(() => document.querySelector("#left img").hasAttribute("src")), false, "the picture's URL should be released");
});

/// The places of all pictures on the map, by name.
const places = (page) => page.run(() => Object.fromEntries(items.map(({ name, place }) => [name, place])));
const distance = (a, b) => Math.hypot(a.x - b.x, a.y - b.y);

async function openMap(page, service) {
  await page.open(service.url);
  await page.click("#samples");
  await wall(page, 3);
  await page.click("#as-map");
  await page.until("the map", () => document.querySelector("#kept").textContent);
  await page.place("#space");
  return places(page);
}

pageTest("the map puts similar pictures near each other, and is moved by mouse and keyboard", async (page, service) => {
  await page.open(service.url);
  await choose(page, "rocket.jpg", "chelsea.png");
  await wall(page, 2);
  assert.equal(await page.run(() => document.querySelector("#views").checkVisibility()), false, "there should be no map of fewer than three pictures");

  const before = await openMap(page, service);
  const [photo, copy, landscape] = SAMPLES;
  assert(distance(before[photo], before[copy]) < distance(before[photo], before[landscape]) / 2, JSON.stringify(before));
  assert.match(await page.run(() => document.querySelector("#kept").textContent), /hold 100 % of the differences/);

  const { left, top } = await page.run(() => document.querySelector("#space").getBoundingClientRect().toJSON());
  const mouse = (type, { x, y }, buttons = 1) => page.send("Input.dispatchMouseEvent", { type, x: left + x, y: top + y, button: "left", buttons, clickCount: 1 });
  // A click chooses a picture.
  await mouse("mousePressed", before[landscape]);
  await mouse("mouseReleased", before[landscape], 0);
  await page.until("the choice", () => document.querySelector("#left figcaption").textContent === "landscape.jpg");
  assert.match(await page.run(() => document.querySelector("#nearest").textContent), /^Chosen: landscape\.jpg\. Most similar: photo.*\.jpg, 0\.\d\d\.$/);
  // Dragging moves the map and chooses nothing.
  const start = before[photo];
  await mouse("mousePressed", start);
  await mouse("mouseMoved", { x: start.x + 30, y: start.y + 20 });
  await mouse("mouseReleased", { x: start.x + 30, y: start.y + 20 }, 0);
  await page.until("the moved map", (x) => Math.abs(items.find(({ name }) => name === "photo.jpg").place.x - x - 30) < 1, start.x);
  assert.equal(await chosen(page), landscape);

  await page.run(() => document.querySelector("#space").focus());
  // The key + makes the map 1.4 times as large.
  for (const key of ["+", "ArrowRight"]) await page.press(key);
  const gap = distance(before[photo], before[landscape]);
  await page.until("the larger map", (gap) => {
    const [a, b] = ["photo.jpg", "landscape.jpg"].map((wanted) => items.find(({ name }) => name === wanted).place);
    return Math.abs(Math.hypot(a.x - b.x, a.y - b.y) / gap - 1.4) < 0.01;
  }, gap);
  await page.click("[data-move=fit]");
  await page.until("all pictures", (x) => Math.abs(items.find(({ name }) => name === "photo.jpg").place.x - x) < 1, start.x);
  await page.click("#as-wall");
  await page.until("the wall", () => document.querySelector("#wall").checkVisibility());
});

pageTest("on a phone two fingers zoom the map, one moves it, and a tap chooses", { width: 390, height: 844, mobile: true }, async (page, service) => {
  const before = await openMap(page, service);
  const [photo, , landscape] = SAMPLES;
  const { left, top, width, height } = await page.run(() => document.querySelector("#space").getBoundingClientRect().toJSON());
  const [x, y] = [left + width / 2, top + height / 2];
  await page.touch([[left + before[landscape].x, top + before[landscape].y]]);
  await page.until("the choice", () => document.querySelector("#left figcaption").textContent === "landscape.jpg");
  await page.touch([[x - 20, y], [x + 20, y]], [[x - 40, y], [x + 40, y]], [[x - 60, y], [x + 60, y]]);
  await page.until("the larger map", (gap) => {
    const [a, b] = ["photo.jpg", "landscape.jpg"].map((wanted) => items.find(({ name }) => name === wanted).place);
    return Math.hypot(a.x - b.x, a.y - b.y) > gap * 1.5;
  }, distance(before[photo], before[landscape]));
  const zoomed = await places(page);
  await page.touch([[x, y]], [[x, y + 20]], [[x, y + 50]]);
  await page.until("the moved map", (y) => items.find(({ name }) => name === "photo.jpg").place.y > y + 20, zoomed[photo].y);
});

pageTest("with 200 pictures a choice is answered within 100 ms", { service: () => scripted((number) => answerWith(number)) }, async (page, service) => {
  await page.open(service.url);
  await dropDrawn(page, 200);
  // On a busy machine, all together may take longer than `until` waits.
  for (const count of [50, 100, 150]) await page.until(`${count} pictures`, (count) => document.querySelectorAll("#wall li").length >= count, count);
  await wall(page, 200);
  const times = await page.run(async () => {
    const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));
    const times = [];
    for (const number of [150, 3, 77, 120, 42]) {
      await frame();
      const button = document.querySelectorAll("#wall .choose")[number];
      const started = performance.now();
      button.click();
      await frame();
      document.body.offsetHeight; // includes the layout
      times.push(performance.now() - started);
      if (document.querySelector("#wall .choose") !== button) throw new Error("the wall is not ordered");
    }
    return times;
  });
  // On a busy machine, some answers are slower.
  assert(Math.min(...times) < 100, times.join());
  // Twenty pictures have the same colour, and only these have similar vectors. One of them is the chosen one.
  const shown = await wall(page, 200);
  const figures = shown.slice(1).map(([, figure]) => Number(figure));
  assert.deepEqual(figures, figures.toSorted((a, b) => b - a));
  assert(figures[18] > 0.8 && figures[19] < 0.5, String(figures.slice(15, 22)));
  const started = performance.now();
  await page.click("#as-map");
  await page.until("the map", () => document.querySelector("#kept").textContent);
  assert(performance.now() - started < 5000);
});
