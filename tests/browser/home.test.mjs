// The home page `/`: with a mouse, with only a keyboard, on a phone, and in dark mode.

import assert from "node:assert/strict";
import { copyFile, mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { start } from "../service.mjs";
import { pageTest, photo, withoutSandbox } from "./support.mjs";

const CHOOSE = "input[name=file]";
const UUID = /^[0-9a-f-]{36}$/;

const choose = (page, file) => page.choose(() => page.click(CHOOSE), file);

/// Submits the form, waits for the next answer, and returns its list of facts.
async function vectorize(page, submit = () => page.click("#send")) {
  const before = await page.run(() => document.querySelector("article dl")?.innerText ?? "");
  await submit();
  return page.until("an answer", (before) => {
    const list = document.querySelector("article dl");
    if (!list || list.innerText === before) return null;
    return Object.fromEntries([...list.querySelectorAll("dt")].map((term) => [term.textContent, term.nextSibling.textContent]));
  }, before);
}

/// Waits for the box that shows a problem, and returns the box's text.
const problem = (page) => page.until("a problem", () => document.querySelector("[role=alert] .problem")?.innerText);

function cosine(a, b) {
  const dot = (a, b) => a.reduce((sum, number, at) => sum + number * b[at], 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}

pageTest("a chosen picture is shown with the facts of its answer and a drawing of its vector", async (page, service) => {
  await page.open(service.url);
  await choose(page, photo("rocket.jpg"));
  await page.until("the thumbnail", () => document.querySelector("#chosen img").naturalWidth === 640);
  const facts = await vectorize(page);
  assert.match(facts["Saved as"], /^[0-9a-f-]{36}\.jpg$/);
  assert.equal(facts.Picture, "image/jpeg, 640 × 427");
  assert.equal(facts.Prepared, "original");
  assert.equal(facts.Model, "sandbox/perceptual");
  assert.match(facts.Cache, /^(miss|hit)$/);
  assert.match(facts.Time, /^\d+ ms$/);
  assert.match(facts["Request id"], UUID);
  const drawn = await page.run(() => {
    const canvas = document.querySelector("article canvas");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return { squares: canvas.width * canvas.height, colors: new Set(new Uint32Array(data.buffer)).size, label: canvas.ariaLabel };
  });
  assert.equal(drawn.squares, 1536);
  assert(drawn.colors > 100, `${drawn.colors} colors`);
  assert.match(drawn.label, /^1536 numbers, from -0\.\d+ to 0\.\d+$/);
  assert.equal(await page.run(() => JSON.parse(document.querySelector("article pre").textContent).length), 1536);
  assert.match(await page.run(() => document.querySelector("#status[role=status]").innerText), /^Done: saved as/);
});

pageTest("a second picture is compared with the first, and the same picture is a cache hit", async (page, service) => {
  const vector = async (name) => {
    const body = new FormData();
    body.append("file", new Blob([await readFile(photo(name))]));
    return (await (await fetch(`${service.url}/vectorize-image-upload`, { method: "POST", body })).json()).vector;
  };
  const expected = cosine(await vector("rocket.jpg"), await vector("chelsea.png")).toFixed(4);
  const similarity = () => page.run(() => document.querySelector("#similarity").innerText);
  await page.open(service.url);
  await choose(page, photo("rocket.jpg"));
  await vectorize(page);
  assert.equal(await similarity(), "");
  assert.equal((await vectorize(page)).Cache, "hit");
  assert.equal(await similarity(), "Cosine similarity of the two: 1.0000");
  await page.drop(photo("chelsea.png"));
  await vectorize(page);
  assert.equal(await similarity(), `Cosine similarity of the two: ${expected}`);
  const tops = await page.run(() => [...document.querySelectorAll("article")].map((article) => article.getBoundingClientRect().top));
  assert.equal(tops.length, 2);
  assert.equal(tops[0], tops[1], "the two answers should be side by side");
});

pageTest("a pasted picture and a pasted address are accepted", async (page, service) => {
  await page.open(service.url);
  const paste = (kind) => page.run(async (kind) => {
    const clipboardData = new DataTransfer();
    if (kind === "picture") {
      const bytes = await (await fetch("/sandbox/photo.jpg")).blob();
      clipboardData.items.add(new File([bytes], "pasted.jpg", { type: "image/jpeg" }));
    } else {
      clipboardData.setData("text/plain", new URL("/sandbox/photo.jpg", location).href);
    }
    document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
  }, kind);
  await paste("picture");
  assert.equal(await page.run(() => document.querySelector("#chosen figcaption").innerText), "pasted.jpg");
  assert.equal((await vectorize(page)).Picture, "image/jpeg, 640 × 427");
  await paste("address");
  assert.equal(await page.run(() => document.querySelector("#chosen").hidden), true);
  await vectorize(page);
  assert.equal(await page.run(() => document.querySelector("article h2").innerText), `${service.url}/sandbox/photo.jpg`);
});

pageTest("in sandbox mode the page says so, and its sample picture gets a vector", async (page, service) => {
  await page.open(service.url);
  assert.match(await page.run(() => document.querySelector("main").innerText), /Sandbox mode/);
  await page.click("#sample");
  assert.equal(await page.run(() => document.querySelector("#address").value), `${service.url}/sandbox/photo.jpg`);
  assert.equal((await vectorize(page, () => page.press("Enter"))).Picture, "image/jpeg, 640 × 427");
});

pageTest("without sandbox mode the page does not mention the sandbox", { service: withoutSandbox }, async (page, service) => {
  await page.open(service.url);
  assert.doesNotMatch(await page.run(() => document.querySelector("main").innerText), /sandbox/i);
});

pageTest("an error is shown with its detail and the request's id", async (page, service) => {
  await page.open(service.url);
  await page.fill("#address", "http://169.254.169.254/latest/meta-data/");
  await page.click("#send");
  await page.expectFailure(403);
  const shown = await problem(page);
  assert.match(shown, /does not lead to a public host\./);
  assert.match(shown, /403 url_not_allowed/);
  assert.match(shown.match(/Request id\s+(\S+)/)[1], UUID);
  assert.equal(await page.run(() => document.querySelector("#status").innerText), "");

  await choose(page, photo("README.md"));
  await page.click("#send");
  await page.until("the next problem", () => document.querySelector(".problem")?.innerText.includes("unsupported_image"));
  await page.expectFailure(415);
  // After the errors, the next picture is answered.
  await choose(page, photo("rocket.jpg"));
  await vectorize(page);
  assert.equal(await page.run(() => document.querySelector("#problem").innerText), "");
});

pageTest("without a picture nothing is sent, and a missing response is reported", { service: () => start() }, async (page, service) => {
  await page.open(service.url);
  await page.click("#send");
  assert.match(await problem(page), /^Choose a picture or enter an address first/);
  await choose(page, photo("rocket.jpg"));
  await page.send("Network.emulateNetworkConditions", { offline: true, latency: 0, downloadThroughput: -1, uploadThroughput: -1 });
  await page.click("#send");
  await page.until("the failure", () => document.querySelector(".problem")?.innerText.startsWith("The service did not answer"));
  assert.match(page.complaints.splice(0).join(), /ERR_INTERNET_DISCONNECTED/);
});

pageTest("a file name with HTML is shown as text, and no injected script runs", async (page, service) => {
  const folder = await mkdtemp(join(tmpdir(), "names-"));
  const name = "<img src=x onerror=hacked=1>.jpg";
  try {
    await copyFile(photo("rocket.jpg"), join(folder, name));
    await page.open(service.url);
    await choose(page, join(folder, name));
    await vectorize(page);
    assert.equal(await page.run(() => document.querySelector("article h2").innerText), name);
  } finally {
    await rm(folder, { recursive: true });
  }
  const results = await page.run(() => {
    const attempt = (work) => { try { work(); return "done"; } catch (error) { return error.name; } };
    return [
      attempt(() => { document.querySelector("h1").innerHTML = "<b>x</b>"; }),
      attempt(() => { document.body.append(Object.assign(document.createElement("script"), { textContent: "hacked = 1" })); }),
      typeof window.hacked,
    ];
  });
  assert.deepEqual(results, ["TypeError", "TypeError", "undefined"]);
  const violations = page.complaints.splice(0);
  assert(violations.length >= 2 && violations.every((text) => /trusted|ContentSecurityPolicyIssue/i.test(text)), violations.join("\n"));
});

pageTest("every control has a name and works with only the keyboard", async (page, service) => {
  await page.open(service.url);
  const reached = [];
  for (let focused = ""; reached.length < 20; ) {
    await page.press("Tab");
    focused = await page.run(() => document.activeElement.id || document.activeElement.name || document.activeElement.localName);
    if (focused === "body" || reached.includes(focused)) break;
    reached.push(focused);
  }
  // The button for the camera is shown only on touch screens.
  assert.deepEqual(reached, ["a", "sample", "file", "address", "send"]);
  const { nodes } = await page.send("Accessibility.getFullAXTree");
  const focusable = nodes.filter((node) => !node.ignored && node.role.value !== "RootWebArea" && node.properties?.some(({ name, value }) => name === "focusable" && value.value));
  assert(focusable.length >= 5);
  for (const node of focusable) assert(node.name.value, JSON.stringify(node).slice(0, 500));

  await page.run(() => document.querySelector("[name=file]").focus());
  assert.equal(await page.run(() => getComputedStyle(document.querySelector(".pick:focus-within")).outlineStyle), "solid");
  await page.choose(() => page.press("Enter"), photo("rocket.jpg"));
  await page.until("the choice", () => !document.querySelector("#chosen").hidden);
  await page.press("Tab");
  await page.press("Tab");
  await vectorize(page, () => page.press("Enter"));
  assert.equal(await page.run(() => document.activeElement.id), "send");
  assert.deepEqual(page.hints, []);
});

pageTest("on a phone the camera button is shown, and nothing is wider than the screen", { width: 360, height: 740, mobile: true }, async (page, service) => {
  await page.open(service.url);
  assert.equal(await page.run(() => document.querySelector("[name=camera]").getAttribute("capture")), "environment");
  await page.choose(() => page.click("[name=camera]"), photo("hubble_deep_field.jpg"));
  await vectorize(page);
  await page.click("#sample");
  await vectorize(page);
  assert.equal(await page.run(() => document.documentElement.scrollWidth), 360);
  // A finger needs controls of at least 44 pixels.
  const tooSmall = await page.run(() => [...document.querySelectorAll("button, .pick, input:not([type=file])")].filter((control) => control.checkVisibility() && control.getBoundingClientRect().height < 44).map((control) => control.outerHTML));
  assert.deepEqual(tooSmall, []);
});

/// The relative luminance (WCAG 2.2) of a color as a browser prints it, such as `rgb(0, 0, 0)`.
function luminance(color) {
  const [r, g, b] = color.match(/[\d.]+/g).map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function contrast(a, b) {
  const [dark, light] = [luminance(a), luminance(b)].sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
}

for (const colors of ["light", "dark"]) {
  pageTest(`the page has ${colors} colors if the browser prefers them, and enough contrast`, { colors }, async (page, service) => {
    await page.open(service.url);
    await page.click("#send");
    await problem(page);
    const color = (selector, name = "color") => page.run((selector, name) => getComputedStyle(document.querySelector(selector))[name], selector, name);
    const background = await color("body", "backgroundColor");
    assert(colors === "dark" ? luminance(background) < 0.1 : luminance(background) > 0.9, background);
    const contrasts = {
      text: contrast(await color("body"), background),
      link: contrast(await color("a"), background),
      problem: contrast(await color(".problem"), background),
      button: contrast(await color("#send"), await color("#send", "backgroundColor")),
    };
    for (const [what, contrast] of Object.entries(contrasts)) assert(contrast >= 4.5, `${what}: ${contrast}`);
  });
}

const API_KEY = "a-key-of-the-browser-test-0123456789abcdef";

/// Starts a service that requires a client key.
const withKey = () => start({ IMAGESVC_API_KEYS: API_KEY });

pageTest("the page asks for a required key, sends it, and stores it until the tab is closed", { service: withKey }, async (page, service) => {
  const isFieldVisible = () => page.run(() => document.querySelector("#key").checkVisibility());
  await page.open(service.url);
  assert.equal(await isFieldVisible(), false);
  await choose(page, photo("rocket.jpg"));
  await page.click("#send");
  await page.expectFailure(401);
  await problem(page);
  assert.equal(await isFieldVisible(), true);
  assert.equal(await page.run(() => document.activeElement.id), "key");
  await page.send("Input.insertText", { text: "wrong" });
  await page.press("Enter");
  await page.expectFailure(401);
  await problem(page);
  assert.equal(await page.run(() => sessionStorage.length), 0);
  await page.fill("#key", API_KEY);
  await vectorize(page, () => page.press("Enter"));
  await page.open(service.url);
  assert.equal(await isFieldVisible(), true);
  await choose(page, photo("rocket.jpg"));
  await vectorize(page);
  assert.equal(await page.run(() => localStorage.length), 0);
});
