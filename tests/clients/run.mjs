// Runs each client of this folder against two services in sandbox mode. One of them requires a key. Prints one
// line for each client. curl is tested by tests/api/commands.rs, with the commands of the pages.

import { spawn } from "node:child_process";
import { readdir } from "node:fs/promises";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";

import { start } from "../service.mjs";

const folder = fileURLToPath(new URL(".", import.meta.url));
const photo = fileURLToPath(new URL("../fixtures/rocket.jpg", import.meta.url));
const python = process.env.PYTHON ?? "python3";
// The program that runs a client, by the extension of the client's file.
const PROGRAMS = { py: python, mjs: process.execPath };
const NOT_CLIENTS = ["run.mjs", "check.py", "openai_api.py"];
const KEY = "for-tests-0123456789abcdef";

/// The longest time for a client, in milliseconds.
const TIMEOUT_MS = 60_000;

// Clients must connect to the two services and to nothing else.
const ISOLATION = {
  NO_PROXY: "*", // requests, httpx and aiohttp would send local requests through a proxy, too
  no_proxy: "*",
  LANGSMITH_TRACING: "false", // langchain-core would report calls to LangSmith if this were true
  NVIDIA_USAGE_TELEMETRY_ENABLED: "false", // langchain-nvidia-ai-endpoints reports its use by default
};

const clients = (await readdir(folder)).filter((name) => name.split(".").pop() in PROGRAMS && !NOT_CLIENTS.includes(name));
const services = [];
let failed = clients.length === 0; // without clients, nothing is tested
try {
  services.push(await start(), await start({ IMAGESVC_API_KEYS: KEY }));
  const [withoutKey, withKey] = services;
  const serviceVariables = { IMAGESVC_URL: withoutKey.url, IMAGESVC_KEYED_URL: withKey.url, IMAGESVC_KEY: KEY };
  for (const client of clients.sort()) {
    const started = performance.now();
    const env = { ...process.env, ...ISOLATION, ...serviceVariables, IMAGESVC_PHOTO: photo, PYTHON: python, PYTHONDONTWRITEBYTECODE: "1" };
    const child = spawn(PROGRAMS[client.split(".").pop()], [client], { cwd: folder, env, stdio: ["ignore", "inherit", "pipe"], timeout: TIMEOUT_MS });
    const [errors, code] = await Promise.all([text(child.stderr), new Promise((resolve, reject) => child.once("error", reject).once("close", resolve))]);
    console.log(`${code === 0 ? "ok" : "FAILED"}  ${client}  ${Math.round(performance.now() - started)} ms`);
    if (code !== 0) {
      console.error(errors);
      failed = true;
    }
  }
} finally {
  for (const service of services) await service.stop();
}
process.exitCode = failed ? 1 : 0;
