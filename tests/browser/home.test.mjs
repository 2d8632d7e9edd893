// The home page `/`: adding pictures, and what it shows of their answers.

import assert from "node:assert/strict";
import { copyFile, mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { start } from "../service.mjs";
import { choose, facts, pageTest, photo, problem, row, wall, withoutSandbox } from "./support.mjs";

const UUID = /^[0-9a-f-]{36}$/;

function cosine(a, b) {
  const dot = (a, b) => a.reduce((sum, number, at) => sum + number * b[at], 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}

pageTest("a chosen picture is shown with the facts of its answer and a drawing of its vector", async (page, service) => {
  await page.open(service.url);
  await choose(page, "rocket.jpg");
  assert.deepEqual(await wall(page, 1), [["rocket.jpg", "Chosen"]]);
  await page.until("the picture", () => document.querySelector("#left img").naturalWidth === 640);
  const shown = await facts(page);
  assert.match(shown["Saved as"], /^[0-9a-f-]{36}\.jpg$/);
  assert.equal(shown.Picture, "image/jpeg, 640 × 427");
  assert.equal(shown.Prepared, "original");
  assert.equal(shown.Model, "sandbox/perceptual");
  assert.match(shown.Cache, /^(miss|hit)$/);
  assert.match(shown.Time, /^\d+ ms$/);
  assert.match(shown["Request id"], UUID);
  const drawn = await page.run(() => {
    const canvas = document.querySelector("#left-vector");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return { squares: canvas.width * canvas.height, colors: new Set(new Uint32Array(data.buffer)).size, label: canvas.ariaLabel };
  });
  assert.equal(drawn.squares, 1536);
  assert(drawn.colors > 100, `${drawn.colors} colors`);
  assert.match(drawn.label, /^The vector of rocket\.jpg: 1536 numbers, from -0\.\d+ to 0\.\d+$/);
  assert.equal(await page.run(() => JSON.parse(document.querySelector("#vector").textContent).length), 1536);
  assert.equal(await page.run(() => document.querySelector("#status[role=status]").innerText), "Done: the vector is here.");
  assert.equal(await page.run(() => document.querySelector("#queue").hidden), true);
});

pageTest("several pictures are compared, and the same picture is a cache hit", async (page, service) => {
  const vector = async (name) => {
    const body = new FormData();
    body.append("file", new Blob([await readFile(photo(name))]));
    return (await (await fetch(`${service.url}/vectorize-image-upload`, { method: "POST", body })).json()).vector;
  };
  const expected = cosine(await vector("rocket.jpg"), await vector("chelsea.png")).toFixed(2);
  await page.open(service.url);
  await choose(page, "rocket.jpg", "chelsea.png");
  const shown = Object.fromEntries(await wall(page, 2));
  const other = Object.keys(shown).find((name) => shown[name] !== "Chosen");
  assert.equal(shown[other], expected);
  assert.equal((await facts(page)).Cache, "hit");
  await page.until("the pair", () => document.querySelector("#right img").naturalWidth > 0);
  const sides = await page.run(() => ({
    tops: ["left", "right"].map((id) => document.getElementById(id).getBoundingClientRect().top),
    similarity: document.querySelector("#similarity").innerText,
    explained: document.querySelector("#compared").innerText,
  }));
  assert.equal(sides.tops[0], sides.tops[1], "the pictures should be side by side");
  assert.equal(sides.similarity, `Cosine similarity: ${expected}`);
  assert.match(sides.explained, /0\.9 means .* In the sandbox this is about shapes and colours only\./s);
  // The same picture once more has the same vector.
  await page.drop(photo("rocket.jpg"), photo("chelsea.png"));
  assert.equal((await wall(page, 4))[1][1], "1.00");
});

pageTest("pasted pictures and addresses are accepted", async (page, service) => {
  await page.open(service.url);
  const paste = (kind) => page.run(async (kind) => {
    const clipboardData = new DataTransfer();
    if (kind === "pictures") {
      const bytes = await (await fetch("/sandbox/photo.jpg")).blob();
      for (const name of ["pasted.jpg", "pasted-too.jpg"]) clipboardData.items.add(new File([bytes], name, { type: "image/jpeg" }));
    } else {
      const url = new URL("/sandbox/photo.jpg", location).href;
      clipboardData.setData("text/plain", kind === "address" ? url : `${url}\r\n${url}?2\n\nand no address\n`);
    }
    document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true }));
  }, kind);
  await paste("pictures");
  assert.deepEqual((await wall(page, 2)).map(([name]) => name).sort(), ["pasted-too.jpg", "pasted.jpg"]);
  // One address is put in the field, where it can be read before it is sent. A list is sent at once.
  await paste("address");
  assert.deepEqual(await page.run(() => [document.activeElement.id, document.activeElement.value]), ["address", `${service.url}/sandbox/photo.jpg`]);
  await page.press("Enter");
  await wall(page, 3);
  await page.run(() => document.activeElement.blur());
  await paste("addresses");
  const shown = await wall(page, 5);
  assert.deepEqual(shown.map(([name]) => name).filter((name) => name.startsWith("http")).sort(), ["", "", "?2"].map((query) => `${service.url}/sandbox/photo.jpg${query}`));
});

pageTest("in sandbox mode the page says so, and its sample address gets a vector", async (page, service) => {
  await page.open(service.url);
  assert.match(await page.run(() => document.querySelector("main").innerText), /Sandbox mode/);
  assert.equal(await page.run(() => document.querySelector("#address").value), `${service.url}/sandbox/photo.jpg`);
  await page.click("#send");
  await wall(page, 1);
  assert.equal((await facts(page)).Picture, "image/jpeg, 640 × 427");
  // The picture comes from this service, so the page shows it, too.
  await page.until("the picture", () => document.querySelector("#left img").naturalWidth === 640);
});

pageTest("without sandbox mode the page does not mention the sandbox", { service: withoutSandbox }, async (page, service) => {
  await page.open(service.url);
  assert.doesNotMatch(await page.run(() => document.querySelector("main").innerText), /sandbox|sample/i);
});

pageTest("an error is shown with its detail and the request's id, and other pictures can be added", async (page, service) => {
  await page.open(service.url);
  await page.fill("#address", "http://169.254.169.254/latest/meta-data/");
  await page.click("#send");
  await page.expectFailure(403);
  const shown = await row(page, /./);
  assert.match(shown, /does not lead to a public host\./);
  assert.match(shown, /403 url_not_allowed/);
  assert.match(shown.match(/request id (\S+)/)[1], UUID);
  assert.match(await problem(page), /^1 of the pictures failed/);
  assert.equal(await page.run(() => document.querySelector("#status").innerText), "");

  await choose(page, "README.md", "rocket.jpg");
  await wall(page, 1);
  await row(page, /415 unsupported_image/);
  await page.expectFailure(415);
  assert.match(await problem(page), /^2 of the pictures failed/);
  for (const remaining of [1, 0]) {
    await page.click("#rows li [data-do=remove]");
    await page.until(`${remaining} rows`, (remaining) => document.querySelectorAll("#rows li").length === remaining, remaining);
  }
  assert.equal(await page.run(() => document.querySelector("#problem").innerText), "");
});

pageTest("without an address nothing is sent, and a missing response is reported and can be tried again", { service: () => start() }, async (page, service) => {
  await page.open(service.url);
  await page.fill("#address", " ");
  await page.click("#send");
  assert.match(await problem(page), /^Enter the complete web address/);
  const offline = (offline) => page.send("Network.emulateNetworkConditions", { offline, latency: 0, downloadThroughput: -1, uploadThroughput: -1 });
  await offline(true);
  await choose(page, "rocket.jpg", "chelsea.png");
  await page.until("two failures", () => [...document.querySelectorAll("#rows .failed")].filter((element) => element.innerText === "The service did not answer.").length === 2);
  assert.match(page.complaints.splice(0).join(), /ERR_INTERNET_DISCONNECTED/);
  await offline(false);
  await page.click("#again");
  await wall(page, 2);
  assert.equal(await page.run(() => document.querySelector("#problem").innerText), "");
});

pageTest("a file name with HTML is shown as text, and no injected script runs", async (page, service) => {
  const folder = await mkdtemp(join(tmpdir(), "names-"));
  const name = "<img src=x onerror=hacked=1>.jpg";
  try {
    await copyFile(photo("rocket.jpg"), join(folder, name));
    await page.open(service.url);
    await choose(page, join(folder, name));
    assert.deepEqual(await wall(page, 1), [[name, "Chosen"]]);
    assert.equal(await page.run(() => document.querySelector("#left figcaption").innerText), name);
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

const API_KEY = "a-key-of-the-browser-test-0123456789abcdef";

/// Starts a service that requires a client key.
const withKey = () => start({ IMAGESVC_API_KEYS: API_KEY });

pageTest("the page asks for a required key once for all pictures, and stores it until the tab is closed", { service: withKey }, async (page, service) => {
  const isFieldVisible = () => page.run(() => document.querySelector("#key").checkVisibility());
  await page.open(service.url);
  assert.equal(await isFieldVisible(), false);
  await choose(page, "rocket.jpg", "chelsea.png");
  await problem(page);
  await page.expectFailure(401);
  assert.equal(await isFieldVisible(), true);
  assert.equal(await page.run(() => document.activeElement.id), "key");
  assert.equal(await page.run(() => document.querySelectorAll("#rows .failed").length), 0);
  await page.send("Input.insertText", { text: "wrong" });
  await page.press("Enter");
  await page.expectFailure(401);
  await problem(page);
  assert.equal(await page.run(() => sessionStorage.length), 0);
  await page.fill("#key", API_KEY);
  await page.press("Enter");
  await wall(page, 2);
  // Each time, the second picture was refused as well if it was sent before the first was refused.
  const others = page.failures.splice(0);
  assert(others.length <= 2 && others.every((status) => status === 401), others.join());
  assert.equal(await page.run(() => document.querySelector("#problem").innerText), "");
  assert.equal(await page.run((key) => document.querySelector("main").innerText.includes(key), API_KEY), false);
  await page.open(service.url);
  assert.equal(await isFieldVisible(), true);
  await choose(page, "rocket.jpg");
  await wall(page, 1);
  assert.equal(await page.run(() => localStorage.length), 0);
});
