// Runs each client of this folder against one sandbox, and prints one line for each. curl is tested by
// tests/api/commands.rs, with the commands of the pages.

import { spawn } from "node:child_process";
import { readdir } from "node:fs/promises";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";

import { start } from "../service.mjs";

const folder = fileURLToPath(new URL(".", import.meta.url));
const photo = fileURLToPath(new URL("../fixtures/rocket.jpg", import.meta.url));
const python = process.env.PYTHON ?? "python3";
const PROGRAMS = { py: python, mjs: process.execPath };
const NOT_CLIENTS = ["run.mjs", "check.py"];

/// The longest time for a client, in milliseconds.
const TIMEOUT_MS = 60_000;

const clients = (await readdir(folder)).filter((name) => name.split(".").pop() in PROGRAMS && !NOT_CLIENTS.includes(name));
const service = await start();
let failed = clients.length === 0;
try {
  for (const client of clients.sort()) {
    const from = performance.now();
    const env = { ...process.env, IMAGESVC_URL: service.url, IMAGESVC_PHOTO: photo, PYTHONDONTWRITEBYTECODE: "1" };
    const child = spawn(PROGRAMS[client.split(".").pop()], [client], { cwd: folder, env, stdio: ["ignore", "inherit", "pipe"], timeout: TIMEOUT_MS });
    const [errors, code] = await Promise.all([text(child.stderr), new Promise((resolve, reject) => child.once("error", reject).once("close", resolve))]);
    console.log(`${code === 0 ? "ok" : "FAILED"}  ${client}  ${Math.round(performance.now() - from)} ms`);
    if (code !== 0) {
      console.error(errors);
      failed = true;
    }
  }
} finally {
  await service.stop();
}
process.exitCode = failed ? 1 : 0;
