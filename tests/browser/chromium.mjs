// A small driver for Chromium. It speaks the DevTools protocol over a pipe (each message ends with
// a NUL), so that it needs no package and opens no port.

import { spawn, spawnSync } from "node:child_process";
import { EventEmitter, once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

const NAMES = ["chromium", "chromium-browser", "google-chrome"];

/// The longest time to wait for something on a page, in milliseconds.
const PATIENCE = 20_000;

/// The browser's program, if there is one.
export function find() {
  const names = process.env.CHROMIUM ? [process.env.CHROMIUM] : NAMES;
  return names.find((name) => spawnSync(name, ["--version"]).status === 0);
}

export class Browser {
  static async launch(program) {
    const profile = await mkdtemp(join(tmpdir(), "chromium-"));
    const child = spawn(
      program,
      [
        "--headless=new",
        "--remote-debugging-pipe",
        `--user-data-dir=${profile}`,
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-default-apps",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--disable-sync",
        // No other name resolves, whatever a page or the browser itself tries to call.
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        // Chromium's own sandbox does not start as root, as in most containers.
        ...(process.getuid() === 0 ? ["--no-sandbox"] : []),
      ],
      { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] },
    );
    return new Browser(child, profile);
  }

  #child;
  #profile;
  #next = 1;
  #waiting = new Map();
  #sessions = new Map();

  constructor(child, profile) {
    this.#child = child;
    this.#profile = profile;
    let rest = Buffer.alloc(0);
    child.stdio[4].on("data", (data) => {
      rest = Buffer.concat([rest, data]);
      for (let end; (end = rest.indexOf(0)) >= 0; rest = rest.subarray(end + 1)) {
        this.#receive(JSON.parse(rest.subarray(0, end)));
      }
    });
    child.once("exit", (code) => {
      for (const { reject } of this.#waiting.values()) reject(new Error(`Chromium ended with ${code}`));
    });
  }

  #receive({ id, sessionId, method, params, result, error }) {
    if (id === undefined) return this.#sessions.get(sessionId)?.emit(method, params);
    const { resolve, reject, asked } = this.#waiting.get(id);
    this.#waiting.delete(id);
    if (error) reject(new Error(`${asked}: ${error.message}`));
    else resolve(result);
  }

  send(asked, params = {}, sessionId = undefined) {
    const id = this.#next++;
    this.#child.stdio[3].write(`${JSON.stringify({ id, method: asked, params, sessionId })}\0`);
    return new Promise((resolve, reject) => this.#waiting.set(id, { resolve, reject, asked }));
  }

  /// Opens a page in its own browser context, so that nothing is stored from one page to the next.
  async page({ width = 1000, height = 900, mobile = false, colors = "light" } = {}) {
    const { browserContextId } = await this.send("Target.createBrowserContext");
    const { targetId } = await this.send("Target.createTarget", { url: "about:blank", browserContextId });
    const { sessionId } = await this.send("Target.attachToTarget", { targetId, flatten: true });
    const events = new EventEmitter();
    this.#sessions.set(sessionId, events);
    const page = new Page((method, params) => this.send(method, params, sessionId), events);
    await Promise.all(["Page", "Runtime", "Network", "Log", "Audits", "DOM", "Accessibility"].map((domain) => page.send(`${domain}.enable`)));
    await page.send("Emulation.setDeviceMetricsOverride", { width, height, mobile, deviceScaleFactor: 1 });
    await page.send("Emulation.setTouchEmulationEnabled", { enabled: mobile });
    await page.send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: colors }] });
    await page.send("Page.setInterceptFileChooserDialog", { enabled: true });
    return page;
  }

  async close() {
    const ended = once(this.#child, "exit");
    this.send("Browser.close").catch(() => {}); // it may end before it answers
    await ended;
    await rm(this.#profile, { recursive: true, force: true, maxRetries: 5 });
  }
}

const KEYS = { Tab: 9, Enter: 13, Space: 32 };

export class Page {
  /// Every URL that the page requested.
  requested = [];
  /// Errors and warnings that a developer would see.
  complaints = [];
  /// Hints that a developer would see.
  hints = [];
  /// The statuses of failed answers, which the browser reports as errors.
  failures = [];

  constructor(send, events) {
    this.send = send;
    this.events = events;
    events.on("Network.requestWillBeSent", ({ request }) => this.requested.push(request.url));
    events.on("Network.webSocketCreated", ({ url }) => this.requested.push(url));
    events.on("Runtime.exceptionThrown", ({ exceptionDetails: { text, exception } }) => this.complaints.push(`${text} ${exception?.description ?? ""}`));
    events.on("Runtime.consoleAPICalled", ({ type, args }) => {
      if (["error", "warning", "assert"].includes(type)) this.complaints.push(`console.${type}: ${args.map((arg) => arg.value ?? arg.description).join(" ")}`);
    });
    events.on("Log.entryAdded", ({ entry: { level, source, text, url } }) => {
      const status = source === "network" && text.match(/status of (\d+)/)?.[1];
      if (status) this.failures.push(Number(status));
      else if (["error", "warning"].includes(level)) this.complaints.push(`${source}: ${text} ${url ?? ""}`);
    });
    // Violations of the Content-Security-Policy are complaints; faults of forms are hints.
    events.on("Audits.issueAdded", ({ issue }) => (issue.code === "GenericIssue" ? this.hints : this.complaints).push(JSON.stringify(issue)));
  }

  async open(url) {
    const loaded = once(this.events, "Page.loadEventFired");
    const { errorText } = await this.send("Page.navigate", { url });
    if (errorText) throw new Error(`${url}: ${errorText}`);
    await loaded;
  }

  /// Runs a function in the page and returns its result. The arguments are copied.
  async run(work, ...args) {
    const expression = `(${work})(...${JSON.stringify(args)})`;
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  }

  /// Calls a function in the page at each frame until it returns something, and returns that.
  async until(what, work, ...args) {
    const frames = `(work, patience, args) => new Promise((resolve) => {
      const end = performance.now() + patience;
      const look = () => {
        const found = work(...args);
        if (found || performance.now() > end) resolve(found instanceof Node || found);
        else requestAnimationFrame(look);
      };
      look();
    })`;
    const expression = `(${frames})(${work}, ${PATIENCE}, ${JSON.stringify(args)})`;
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    if (!result.value) throw new Error(`the page never showed: ${what}\n${await this.run(() => document.body.innerText.slice(0, 2000))}`);
    return result.value;
  }

  /// Clicks an element once it does not move and nothing covers it.
  async click(selector) {
    const point = await this.until(`${selector}, to be clicked`, (selector) => {
      const element = document.querySelector(selector);
      element?.scrollIntoView({ block: "center", behavior: "instant" });
      const { x, y, width, height } = element?.getBoundingClientRect() ?? {};
      const rect = [selector, x, y, width, height].join();
      const rested = window.restedAt === rect;
      window.restedAt = rect;
      const point = { x: x + width / 2, y: y + height / 2 };
      return rested && width > 0 && element.contains(document.elementFromPoint(point.x, point.y)) && point;
    }, selector);
    for (const type of ["mousePressed", "mouseReleased"]) {
      await this.send("Input.dispatchMouseEvent", { type, ...point, button: "left", clickCount: 1 });
    }
  }

  async press(key, modifiers = 0) {
    const text = { Enter: "\r", Space: " " }[key];
    const code = { key: key === "Space" ? " " : key, code: key, windowsVirtualKeyCode: KEYS[key], modifiers };
    await this.send("Input.dispatchKeyEvent", { type: text ? "keyDown" : "rawKeyDown", text, ...code });
    await this.send("Input.dispatchKeyEvent", { type: "keyUp", ...code });
  }

  /// Replaces the text in a field.
  async fill(selector, text) {
    await this.click(selector);
    await this.run((selector) => document.querySelector(selector).select(), selector);
    await this.send("Input.insertText", { text });
  }

  /// Waits for a failed answer that a test provoked, and removes it from the failures.
  async failed(status) {
    const signal = AbortSignal.timeout(PATIENCE);
    while (!this.failures.length) await once(this.events, "Log.entryAdded", { signal });
    const failure = this.failures.shift();
    if (failure !== status) throw new Error(`it failed with ${failure}, not ${status}`);
  }

  /// Opens the file chooser, and chooses files.
  async choose(open, ...files) {
    const opened = once(this.events, "Page.fileChooserOpened", { signal: AbortSignal.timeout(PATIENCE) });
    await open();
    const [{ backendNodeId }] = await opened;
    await this.send("DOM.setFileInputFiles", { files, backendNodeId });
  }

  /// Drops files on the page.
  async drop(...files) {
    const data = { items: [], files, dragOperationsMask: 1 };
    for (const type of ["dragEnter", "dragOver", "drop"]) {
      await this.send("Input.dispatchDragEvent", { type, x: 100, y: 100, data });
    }
  }

  async screenshot() {
    const { data } = await this.send("Page.captureScreenshot", { captureBeyondViewport: true });
    return Buffer.from(data, "base64");
  }
}
