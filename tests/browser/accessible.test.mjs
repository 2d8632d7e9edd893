// Whether everybody can use the home page: axe-core's rules, keyboard, touch, dark mode, 200 % text, reduced motion.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";

import { answerWith, dropDrawn, pageTest, row, scripted, wall } from "./support.mjs";

const axe = await readFile(new URL("node_modules/axe-core/axe.min.js", import.meta.url), "utf8").catch(() => null);
assert(axe || process.env.CI !== "true", "with CI=true this test needs axe-core: npm ci --prefix tests/browser");

/// Fails if axe-core finds something serious or critical. `what` is the state of the page.
async function assertAccessible(page, what) {
  const found = await page.run(async () => {
    const { violations } = await window.axe.run(document, { resultTypes: ["violations"] });
    return violations.filter(({ impact }) => ["serious", "critical"].includes(impact)).map(({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) => `${html.slice(0, 200)} ${failureSummary}`).join("\n")}`);
  });
  assert.deepEqual(found, [], what);
}

const PHONE = { width: 390, height: 844, mobile: true };
/// Starts a service that rejects the fourth picture.
const serviceThatRejectsOne = () => scripted((number) => (number === 3 ? [422, {}, { status: 422, code: "embedding_rejected", detail: "NVIDIA rejects this picture.", request_id: "an-id" }] : answerWith(number)));

for (const [name, options] of Object.entries({ "light colors": { colors: "light" }, "dark colors": { colors: "dark" }, "a phone with dark colors": { ...PHONE, colors: "dark" } })) {
  pageTest(`axe-core finds nothing serious with ${name}`, { ...options, motion: "reduce", service: serviceThatRejectsOne, skip: !axe && "axe-core is not installed: npm ci --prefix tests/browser" }, async (page, service) => {
    await page.open(service.url);
    await page.send("Runtime.evaluate", { expression: axe });
    const background = await page.run(() => getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number));
    assert(options.colors === "dark" ? Math.max(...background) < 50 : Math.min(...background) > 230, String(background));
    await assertAccessible(page, "the empty page");
    await dropDrawn(page, 5);
    await wall(page, 4);
    await row(page, /embedding_rejected/);
    await page.expectFailure(422);
    await page.run(() => { for (const details of document.querySelectorAll("details")) details.open = true; });
    await assertAccessible(page, "the wall and a failure");
    await page.click("#as-map");
    await page.until("the map", () => document.querySelector("#kept").textContent);
    await page.run(() => { document.querySelector("#lock").hidden = false; });
    await assertAccessible(page, "the map and the key");
  });
}

/// What a person cannot read or hit: elements that are wider than the screen, smaller than 44 pixels (WCAG
/// 2.2, 2.5.5), or cut off. `overflow` is by how many pixels the page is wider than the screen.
const faults = (page) => page.run(() => {
  const shown = (selector) => [...document.querySelectorAll(selector)].filter((element) => element.checkVisibility({ visibilityProperty: true }));
  const label = (element) => `${element.localName}#${element.id}.${element.className} ${element.textContent.trim().slice(0, 40)}`;
  const wide = shown("main *").filter((element) => { const { left, right } = element.getBoundingClientRect(); return right > innerWidth + 1 || left < -1; });
  const small = shown("button, .pick, summary, .check, input:not([type=file], [type=checkbox])").filter((element) => Math.min(element.getBoundingClientRect().height, element.getBoundingClientRect().width) < 44);
  const cut = shown("button:not(.choose), .pick, p, h1, h2, summary, label, .figure, .state").filter((element) => element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).display !== "inline");
  return { overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth, wide: wide.map(label), small: small.map(label), cut: cut.map(label) };
});
const NO_FAULTS = { overflow: 0, wide: [], small: [], cut: [] };

for (const [name, { size, ...options }] of Object.entries({
  "on a phone": { ...PHONE, size: 100 },
  "on a small phone": { ...PHONE, width: 320, height: 640, size: 100 },
  "on a phone with text of 200 %": { ...PHONE, size: 200 },
  "on a desktop with text of 200 %": { width: 1280, height: 900, size: 200 },
})) {
  pageTest(`${name}, nothing is cut off, wider than the screen or too small to hit`, options, async (page, service) => {
    await page.open(service.url);
    await page.run((size) => { document.documentElement.style.fontSize = `${size}%`; }, size);
    assert.equal(await page.run(() => document.querySelector("#take").checkVisibility()), Boolean(options.mobile), "the camera's button should be shown on touch screens only");
    assert.equal(await page.run(() => document.querySelector("[name=camera]").getAttribute("capture")), "environment");
    const act = (selector) => (options.mobile ? page.tap(selector) : page.click(selector));
    await act("#samples");
    await wall(page, 3);
    await page.fill("#address", "http://169.254.169.254/a-long-path-without-any-space/".repeat(3));
    await act("#send");
    await row(page, /url_not_allowed/);
    await page.expectFailure(403);
    await page.run(() => { for (const details of document.querySelectorAll("details")) details.open = true; });
    await page.until("the drawings", () => document.querySelector("#difference").checkVisibility());
    assert.deepEqual(await faults(page), NO_FAULTS);
    await act("#as-map");
    await page.until("the map", () => document.querySelector("#kept").textContent);
    assert.deepEqual(await faults(page), NO_FAULTS);
  });
}

pageTest("every control has a name and a visible focus, and is reached by the keyboard in the order of the page", async (page, service) => {
  await page.open(service.url);
  await page.click("#samples");
  await wall(page, 3);
  await page.click("h1"); // the next Tab starts from there
  const reached = [];
  const unmarked = [];
  for (;;) {
    await page.press("Tab");
    const focused = await page.run(() => {
      const element = document.activeElement;
      const marked = element.closest(".pick") ?? element;
      return { name: element.id || element.name || element.className || element.localName, isMarked: getComputedStyle(marked).outlineStyle === "solid" };
    });
    if (focused.name === "body" || reached.length > 40) break;
    if (!focused.isMarked) unmarked.push(focused.name);
    reached.push(focused.name);
    if (focused.name === "csv") break;
  }
  // The button for the camera is shown only on touch screens. The wall has a button for each picture, and one to compare it.
  assert.deepEqual(reached, ["a", "samples", "file", "address", "send", "shrink", "numbers-title", "summary", "copy", "remove", "as-wall", "as-map", "choose", "choose", "compare", "choose", "compare", "jsonl", "csv"]);
  assert.deepEqual(unmarked, []);
  const { nodes } = await page.send("Accessibility.getFullAXTree");
  const focusable = nodes.filter((node) => !node.ignored && node.role.value !== "RootWebArea" && node.properties?.some(({ name, value }) => name === "focusable" && value.value));
  assert(focusable.length >= 19);
  for (const node of focusable) assert(node.name.value, JSON.stringify(node).slice(0, 500));
  assert.deepEqual(page.hints, []);
});

pageTest("by keyboard, pictures are chosen in the file chooser", async (page, service) => {
  await page.open(service.url);
  await page.run(() => document.querySelector("[name=file]").focus());
  await page.choose(() => page.press("Enter"), new URL("../fixtures/rocket.jpg", import.meta.url).pathname);
  await wall(page, 1);
  assert.equal(await page.run(() => document.activeElement.name), "file");
});

for (const motion of ["no-preference", "reduce"]) {
  pageTest(`the pictures ${motion === "reduce" ? "do not move" : "glide"} to their places if the browser's preference is ${motion}`, { motion }, async (page, service) => {
    await page.open(service.url);
    await page.click("#samples");
    await wall(page, 3);
    const moving = await page.run(async () => {
      document.querySelector("#wall li:nth-child(3) .choose").click();
      await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
      return document.getAnimations().length;
    });
    assert.equal(moving > 0, motion === "no-preference", `${moving} animations`);
  });
}
