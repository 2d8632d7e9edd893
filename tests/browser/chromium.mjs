// A small driver for Chromium. It uses the DevTools protocol over a pipe, where each message ends with a
// NUL. So it needs no package and no port.

import { spawn, spawnSync } from "node:child_process";
import { EventEmitter, once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

const NAMES = ["chromium", "chromium-browser", "google-chrome"];

/// The longest time to wait for something on a page, in milliseconds.
const TIMEOUT_MS = 20_000;

/// The name or path of the installed browser, or undefined.
export function findChromium() {
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
        // No other name resolves, so neither a page nor the browser can call other hosts.
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
  #nextId = 1;
  #pending = new Map(); // from a command's id to its promise
  #sessions = new Map(); // from a session's id to its page's events

  constructor(child, profile) {
    this.#child = child;
    this.#profile = profile;
    let unparsed = Buffer.alloc(0);
    child.stdio[4].on("data", (data) => {
      unparsed = Buffer.concat([unparsed, data]);
      for (let end; (end = unparsed.indexOf(0)) >= 0; unparsed = unparsed.subarray(end + 1)) {
        this.#receive(JSON.parse(unparsed.subarray(0, end)));
      }
    });
    child.once("exit", (code) => {
      for (const { reject } of this.#pending.values()) reject(new Error(`Chromium ended with ${code}`));
    });
  }

  #receive({ id, sessionId, method, params, result, error }) {
    if (id === undefined) return this.#sessions.get(sessionId)?.emit(method, params);
    const { resolve, reject, method: command } = this.#pending.get(id);
    this.#pending.delete(id);
    if (error) reject(new Error(`${command}: ${error.message}`));
    else resolve(result);
  }

  /// Sends a command and returns a promise of its result.
  send(method, params = {}, sessionId = undefined) {
    const id = this.#nextId++;
    this.#child.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    return new Promise((resolve, reject) => this.#pending.set(id, { resolve, reject, method }));
  }

  /// Opens a page in a browser context of its own, so that pages do not share cookies or storage.
  async page({ width = 1000, height = 900, mobile = false, colors = "light", motion = "no-preference" } = {}) {
    const { browserContextId } = await this.send("Target.createBrowserContext");
    const { targetId } = await this.send("Target.createTarget", { url: "about:blank", browserContextId });
    const { sessionId } = await this.send("Target.attachToTarget", { targetId, flatten: true });
    const events = new EventEmitter();
    this.#sessions.set(sessionId, events);
    const page = new Page((method, params) => this.send(method, params, sessionId), events);
    page.browser = this;
    page.browserContextId = browserContextId;
    await Promise.all(["Page", "Runtime", "Network", "Log", "Audits", "DOM", "Accessibility"].map((domain) => page.send(`${domain}.enable`)));
    await page.send("Emulation.setDeviceMetricsOverride", { width, height, mobile, deviceScaleFactor: 1 });
    await page.send("Emulation.setTouchEmulationEnabled", { enabled: mobile });
    await page.send("Emulation.setEmulatedMedia", {
      features: [
        { name: "prefers-color-scheme", value: colors },
        { name: "prefers-reduced-motion", value: motion },
      ],
    });
    await page.send("Page.setInterceptFileChooserDialog", { enabled: true });
    return page;
  }

  /// Calls `act`, which must start a download of the page, and returns the file's name and text.
  async download({ browserContextId }, act) {
    const downloadPath = await mkdtemp(join(tmpdir(), "download-"));
    const events = new EventEmitter();
    this.#sessions.set(undefined, events); // the browser's own events have no session
    try {
      await this.send("Browser.setDownloadBehavior", { behavior: "allowAndName", browserContextId, downloadPath, eventsEnabled: true });
      const signal = AbortSignal.timeout(TIMEOUT_MS);
      const [begun, ended] = [once(events, "Browser.downloadWillBegin", { signal }), once(events, "completed", { signal })];
      events.on("Browser.downloadProgress", ({ state }) => events.emit(state));
      await act();
      const [[{ guid, suggestedFilename }]] = await Promise.all([begun, ended]);
      return { name: suggestedFilename, text: await readFile(join(downloadPath, guid), "utf8") };
    } finally {
      this.#sessions.delete(undefined);
      await rm(downloadPath, { recursive: true });
    }
  }

  async close() {
    const ended = once(this.#child, "exit");
    this.send("Browser.close").catch(() => {}); // Chromium may end before it responds
    await ended;
    await rm(this.#profile, { recursive: true, force: true, maxRetries: 5 });
  }
}

const KEYS = { Tab: 9, Enter: 13, Space: 32, ArrowLeft: 37, ArrowUp: 38, ArrowRight: 39, ArrowDown: 40, "+": 187, "-": 189 };

export class Page {
  /// Every URL that the page requested.
  requested = [];
  /// Errors and warnings of the browser's console.
  complaints = [];
  /// Problems of forms that the browser's developer tools report.
  hints = [];
  /// The kinds of the dialogs that opened. The driver accepts each.
  dialogs = [];
  /// The statuses of responses with 4xx or 5xx, which the console reports as errors.
  failures = [];

  constructor(send, events) {
    this.send = send;
    this.events = events;
    events.on("Network.requestWillBeSent", ({ request }) => this.requested.push(request.url));
    events.on("Network.webSocketCreated", ({ url }) => this.requested.push(url));
    events.on("Page.javascriptDialogOpening", ({ type }) => {
      this.dialogs.push(type);
      this.send("Page.handleJavaScriptDialog", { accept: true });
    });
    events.on("Runtime.exceptionThrown", ({ exceptionDetails: { text, exception } }) => this.complaints.push(`${text} ${exception?.description ?? ""}`));
    events.on("Runtime.consoleAPICalled", ({ type, args }) => {
      if (["error", "warning", "assert"].includes(type)) this.complaints.push(`console.${type}: ${args.map((arg) => arg.value ?? arg.description).join(" ")}`);
    });
    events.on("Log.entryAdded", ({ entry: { level, source, text, url } }) => {
      const status = source === "network" && text.match(/status of (\d+)/)?.[1];
      if (status) this.failures.push(Number(status));
      else if (["error", "warning"].includes(level)) this.complaints.push(`${source}: ${text} ${url ?? ""}`);
    });
    // A GenericIssue is a problem of a form. All other issues, such as violations of the Content-Security-Policy,
    // are complaints.
    events.on("Audits.issueAdded", ({ issue }) => (issue.code === "GenericIssue" ? this.hints : this.complaints).push(JSON.stringify(issue)));
  }

  /// Closes the page. It is not asked whether it may be closed.
  close() {
    return this.browser.send("Target.disposeBrowserContext", { browserContextId: this.browserContextId });
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

  /// Calls a function in the page at each frame until it returns a truthy value, and returns that value.
  async until(what, work, ...args) {
    const poll = `(work, timeout, args) => new Promise((resolve) => {
      const end = performance.now() + timeout;
      const look = () => {
        const found = work(...args);
        if (found || performance.now() > end) resolve(found instanceof Node || found);
        else requestAnimationFrame(look);
      };
      look();
    })`;
    const expression = `(${poll})(${work}, ${TIMEOUT_MS}, ${JSON.stringify(args)})`;
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    if (!result.value) throw new Error(`the page never showed: ${what}\n${await this.run(() => document.body.innerText.slice(0, 2000))}`);
    return result.value;
  }

  /// The middle of an element, as soon as it does not move and nothing covers it.
  place(selector) {
    return this.until(`${selector}, to be clicked`, (selector) => {
      const element = document.querySelector(selector);
      element?.scrollIntoView({ block: "center", behavior: "instant" });
      const { x, y, width, height } = element?.getBoundingClientRect() ?? {};
      const rect = [selector, x, y, width, height].join();
      const isStill = window.previousRect === rect;
      window.previousRect = rect;
      const point = { x: x + width / 2, y: y + height / 2 };
      return isStill && width > 0 && element.contains(document.elementFromPoint(point.x, point.y)) && point;
    }, selector);
  }

  async click(selector) {
    const point = await this.place(selector);
    for (const type of ["mousePressed", "mouseReleased"]) {
      await this.send("Input.dispatchMouseEvent", { type, ...point, button: "left", clickCount: 1 });
    }
  }

  /// Moves fingers over the page. Each argument is the places of all fingers at one moment.
  async touch(...moments) {
    const [first, ...rest] = moments.map((points) => points.map(([x, y], id) => ({ x, y, id })));
    await this.send("Input.dispatchTouchEvent", { type: "touchStart", touchPoints: first });
    for (const touchPoints of rest) await this.send("Input.dispatchTouchEvent", { type: "touchMove", touchPoints });
    await this.send("Input.dispatchTouchEvent", { type: "touchEnd", touchPoints: [] });
  }

  async tap(selector) {
    const { x, y } = await this.place(selector);
    await this.touch([[x, y]]);
  }

  async press(key, modifiers = 0) {
    const text = { Enter: "\r", Space: " ", "+": "+", "-": "-" }[key];
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

  /// Waits for a response with this error status, which the test provoked, and removes it from `failures`.
  async expectFailure(status) {
    const signal = AbortSignal.timeout(TIMEOUT_MS);
    while (!this.failures.length) await once(this.events, "Log.entryAdded", { signal });
    const failure = this.failures.shift();
    if (failure !== status) throw new Error(`the response has the status ${failure}, not ${status}`);
  }

  /// Calls `open`, which must open the file chooser, and chooses these files.
  async choose(open, ...files) {
    const opened = once(this.events, "Page.fileChooserOpened", { signal: AbortSignal.timeout(TIMEOUT_MS) });
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
