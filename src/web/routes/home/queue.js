const byId = (id) => document.getElementById(id);
const create = (tag, text = "", properties = {}) => Object.assign(document.createElement(tag), { textContent: text }, properties);
const fromTemplate = (id) => byId(id).content.firstElementChild.cloneNode(true);
const address = byId("address"), key = byId("key"), shrink = byId("shrink"), space = byId("space");
// THUMB_PIXELS: the side of a tile's picture. MAX_SENT_PIXELS: the longer side of a photograph that is sent smaller.
// MAX_PAUSE_MS: after a longer Retry-After, the picture fails. TIMEOUT_MS: the longest time for one request.
const STORED_KEY = "imagesvc-key", MAX_PICTURES = 300, MAX_REQUESTS = 3, THUMB_PIXELS = 160, MAX_SENT_PIXELS = 1024;
const MAX_TRIES = 50, MAX_PAUSE_MS = 10 * 60_000, TIMEOUT_MS = 10 * 60_000;
const sample = document.documentElement.dataset.sample; // the URL of the sandbox's sample, or empty
// Fields of an item: shown is the file to display, sent a smaller copy to send, unit the vector with length 1, point the
// picture's position in the two directions of the map, and place its position on the map's canvas.
const items = []; // every picture on the page, in the order of addition
let chosen = null, partner = null; // the chosen picture, and the one that the visitor compares it with
let isPicked = false; // whether the visitor chose `chosen` or `partner`, and not the page
let pausedUntil = 0; // nothing is sent before this time, because the service is busy
let isLocked = false; // whether nothing is sent until the visitor enters a key
let isMap = false; // whether the map is shown, and not the wall
let batch = 0; // how many pictures were added or tried again since the page last said that all are done

// Some browsers forbid storage. The visitor then enters the key at each visit.
const withStorage = (use) => { try { return use(sessionStorage); } catch { return null; } };
key.value = withStorage((storage) => storage.getItem(STORED_KEY)) ?? "";
byId("lock").hidden = !key.value;
address.value = sample;

const say = (text) => { byId("status").textContent = text; };
const showProblem = (text) => byId("problem").replaceChildren(...(text ? [create("p", text, { className: "problem" })] : []));
const embedded = () => items.filter((item) => item.vector);
const percent = (cosine) => `${Math.max(0, Math.min(1, cosine)) * 100}%`;

// --- Adding pictures
const add = (fileOrUrl) => {
  const isFile = fileOrUrl instanceof Blob, row = fromTemplate("row");
  const item = { name: isFile ? fileOrUrl.name : fileOrUrl, file: isFile ? fileOrUrl : null, url: isFile ? null : fileOrUrl, state: "preparing", tries: 0, row, thumb: row.querySelector("canvas") };
  row.querySelector(".name").textContent = item.name;
  row.querySelector("progress").ariaLabel = `Sending ${item.name}`;
  const actions = { retry: () => retry([item]), remove: () => remove(item) };
  for (const button of row.querySelectorAll("button")) {
    button.ariaLabel = `${button.textContent}: ${item.name}`;
    button.addEventListener("click", actions[button.dataset.do]);
  }
  items.push(item);
  byId("rows").append(row);
  update(item, "preparing");
  prepare(item);
};
const addAll = (filesOrUrls) => {
  const roomLeft = MAX_PICTURES - items.length, added = [...filesOrUrls].slice(0, roomLeft);
  showProblem(filesOrUrls.length > roomLeft ? `This page holds ${MAX_PICTURES} pictures, so ${filesOrUrls.length - added.length} were left out. For more, use the command imagesvc embed.` : "");
  added.forEach(add);
  batch += added.length;
  if (added.length) say(added.length === 1 ? `Added: ${items.at(-1).name}` : `${added.length} pictures added.`);
};
const retry = (failed) => {
  batch += failed.length;
  showProblem("");
  for (const item of failed) { item.tries = 0; update(item, "ready"); }
  pump();
};
const remove = (item) => {
  item.request?.abort();
  item.state = "removed";
  items.splice(items.indexOf(item), 1);
  const neighbour = item.row.nextElementSibling ?? item.row.previousElementSibling;
  item.row.remove();
  if (chosen === item) [chosen, partner] = [embedded()[0] ?? null, null];
  if (partner === item) partner = null;
  say(`Removed: ${item.name}`);
  if (!count("failed")) showProblem("");
  // Moves the focus to another button, since it would be lost with the removed button.
  const next = neighbour?.querySelector("button:last-child") ?? (isMap ? space : chosen?.tile.querySelector("button")) ?? document.querySelector("[name=file]");
  next.focus({ preventScroll: true });
  pump();
  render();
};

// Decodes one picture after another, since a decoded photograph takes much memory.
let preparing = Promise.resolve();
const prepare = (item) => { preparing = preparing.then(() => decode(item)).catch(() => {}).then(() => { if (item.state === "preparing") { update(item, "ready"); pump(); } }); };
const drawScaled = (bitmap, canvas, scale) => { // draws the middle of the picture
  const context = canvas.getContext("2d"), [width, height] = [bitmap.width * scale, bitmap.height * scale];
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
};
const decode = async (item) => {
  // Only the visitor's files and the pictures of this service are decoded: the page calls no other host.
  const file = item.file ?? (new URL(item.url).origin === location.origin ? await (await fetch(item.url)).blob() : null);
  if (!file || item.state === "removed") return;
  const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" }); // fails if the browser does not know the format
  drawScaled(bitmap, item.thumb, THUMB_PIXELS / Math.min(bitmap.width, bitmap.height));
  item.shown = file;
  const scale = MAX_SENT_PIXELS / Math.max(bitmap.width, bitmap.height);
  if (item.file && shrink.checked && scale < 1) {
    const canvas = create("canvas", "", { width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale) });
    canvas.getContext("2d").fillStyle = "#fff"; // JPEG has no transparency
    canvas.getContext("2d").fillRect(0, 0, canvas.width, canvas.height);
    drawScaled(bitmap, canvas, scale);
    const smaller = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.85));
    if (smaller && smaller.size < file.size) item.sent = new File([smaller], `${item.name.replace(/\.\w+$/, "")}.jpg`, { type: "image/jpeg" });
  }
  bitmap.close();
};

// --- Sending
const WORDS = { preparing: "Getting ready", ready: "In the queue", sending: "Sending", waiting: sample ? "Waiting for the vector" : "Waiting for NVIDIA", failed: "" };
// Sets an item's state, and shows it in the item's row.
const update = (item, state, text = WORDS[state], more = "") => {
  item.state = state;
  const [progress, words, details] = ["progress", ".state", ".more"].map((selector) => item.row.querySelector(selector));
  progress.hidden = state !== "sending";
  words.textContent = text;
  details.textContent = more;
  words.classList.toggle("failed", state === "failed");
  item.row.querySelector("[data-do=retry]").hidden = state !== "failed";
  render();
};
const count = (...states) => items.filter((item) => states.includes(item.state)).length;
// Sends the next pictures, as many as may be sent now. Says so when no picture is left.
const pump = () => {
  const wait = pausedUntil - Date.now();
  let free = MAX_REQUESTS - count("sending", "waiting");
  for (const item of items) {
    if (isLocked || item.state !== "ready") continue;
    if (wait > 0) item.row.querySelector(".state").textContent = item.tries ? `The service is busy. Next try in ${Math.ceil(wait / 1000)} s` : WORDS.ready;
    else if (free-- > 0) send(item);
  }
  clearTimeout(pump.timer);
  if (wait > 0 && count("ready")) pump.timer = setTimeout(pump, Math.min(wait, 1000));
  if (batch && !count("preparing", "ready", "sending", "waiting")) {
    const failed = count("failed");
    showProblem(failed ? `${failed} of the pictures failed. The list says why.` : "");
    say(failed ? "" : `Done: ${embedded().length === 1 ? "the vector is here." : `all ${embedded().length} vectors are here.`}`);
    batch = 0;
  }
};
// Sends an item, and returns the XMLHttpRequest when it has the response.
const exchange = (item) => new Promise((resolve, reject) => {
  const request = item.request = new XMLHttpRequest(); // fetch reports no progress of an upload
  request.open("POST", item.url ? "vectorize-image" : "vectorize-image-upload");
  request.timeout = TIMEOUT_MS;
  if (key.value) request.setRequestHeader("Authorization", `Bearer ${key.value}`);
  request.upload.onprogress = ({ loaded, total }) => { item.row.querySelector("progress").value = loaded / total; };
  request.upload.onload = () => update(item, "waiting");
  request.onload = () => resolve(request);
  request.onerror = request.ontimeout = request.onabort = () => reject(new Error("The service did not answer."));
  const body = new FormData();
  if (item.file) body.append("file", item.sent ?? item.file);
  else request.setRequestHeader("Content-Type", "application/json");
  request.send(item.file ? body : JSON.stringify({ image_url: item.url }));
});
// The wait by Retry-After in milliseconds. The header contains a number of seconds or, from a proxy, a date.
const pauseOf = (text) => text && (/^\d+$/.test(text) ? text * 1000 : Math.max(1000, Date.parse(text) - Date.now()));
const send = async (item) => {
  update(item, "sending");
  item.tries += 1;
  const started = performance.now();
  try {
    const response = await exchange(item), header = (name) => response.getResponseHeader(name) ?? "";
    let answer = {};
    try { answer = JSON.parse(response.responseText) ?? {}; } catch { /* A proxy in front of the service may answer without JSON. This is reported below. */ }
    const needsKey = response.status === 401 && /^Bearer\b/i.test(header("www-authenticate")), pause = pauseOf(header("retry-after"));
    if (needsKey) {
      update(item, "ready", "Waiting for the API key");
      if (!isLocked) { showProblem(answer.detail); byId("lock").hidden = false; key.focus(); }
      isLocked = true;
      return;
    }
    if (key.value) withStorage((storage) => storage.setItem(STORED_KEY, key.value));
    if ([429, 503].includes(response.status) && pause > 0 && pause <= MAX_PAUSE_MS && item.tries < MAX_TRIES) {
      pausedUntil = Math.max(pausedUntil, Date.now() + pause);
      update(item, "ready");
    } else if (response.status === 200 && answer.vector?.length) {
      finish(item, answer, { "Saved as": answer.saved_as, Picture: `${answer.content_type}, ${answer.width} × ${answer.height}`, Sent: item.sent && `${Math.ceil(item.sent.size / 1000)} kB instead of ${Math.ceil(item.file.size / 1000)} kB`,
        Prepared: answer.prepared, Model: answer.model, Cache: header("x-cache"), Time: `${Math.round(performance.now() - started)} ms`, "Request id": header("x-request-id") });
    } else {
      const id = answer.request_id ?? header("x-request-id"), facts = [`${response.status} ${answer.code ?? ""}`, answer.saved_as && `saved as ${answer.saved_as}`, id && `request id ${id}`];
      update(item, "failed", answer.detail ?? "The answer does not come from this service.", facts.filter(Boolean).join(" · "));
    }
  } catch (error) {
    if (item.state !== "removed") update(item, "failed", error.message);
  } finally {
    item.request = null;
    pump();
  }
};
const finish = (item, { vector, ...answer }, facts) => {
  const length = Math.hypot(...vector) || 1;
  Object.assign(item, { state: "done", vector, answer, facts, unit: Float32Array.from(vector, (number) => number / length), sent: null, tile: fromTemplate("tile") });
  const [choose, compare] = item.tile.querySelectorAll("button");
  choose.prepend(item.thumb);
  if (!item.shown) { // a picture that the browser cannot or may not show
    const context = item.thumb.getContext("2d");
    Object.assign(context, { font: "22px system-ui", textAlign: "center", fillStyle: "#808080" });
    context.fillText(item.file ? item.name.split(".").pop().slice(0, 8) : new URL(item.url).hostname, THUMB_PIXELS / 2, THUMB_PIXELS / 2, THUMB_PIXELS - 10);
  }
  choose.querySelector(".name").textContent = choose.title = item.name;
  compare.ariaLabel = `Compare: ${item.name}`;
  choose.addEventListener("click", () => select(item));
  compare.addEventListener("click", () => { [partner, isPicked] = [item, true]; render(); showPair(); say(`Compared with ${item.name}: ${cosine(chosen, item).toFixed(2)}`); });
  item.row.remove();
  if (!isPicked) chosen = embedded()[0];
  render();
};
