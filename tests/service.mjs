// Starts the built program in sandbox mode, on a free port and in a folder of its own.

import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const BINARY = process.env.IMAGESVC_BINARY ?? fileURLToPath(new URL("../target/debug/imagesvc", import.meta.url));

/// Starts the service with `settings` in addition to the defaults below, and waits until it listens. If
/// it does not start, the error has its output and its exit code.
export async function start(settings = {}) {
  const folder = await mkdtemp(join(tmpdir(), "imagesvc-"));
  const defaults = {
    IMAGESVC_SANDBOX: "true",
    IMAGESVC_HOST: "127.0.0.1",
    IMAGESVC_PORT: "0",
    IMAGESVC_MIN_FREE_BYTES: "0",
    IMAGESVC_DRAIN_DELAY: "0",
    IMAGESVC_LOG_FORMAT: "json",
  };
  const child = spawn(BINARY, { cwd: folder, env: { ...defaults, ...settings }, stdio: ["ignore", "ignore", "pipe"] });
  const ended = new Promise((resolve, reject) => child.once("error", reject).once("close", resolve));
  process.once("exit", () => child.kill()); // also ends the service if a test fails
  const output = [];
  const listening = new Promise((resolve) => {
    createInterface(child.stderr).on("line", (line) => {
      output.push(line);
      const event = line.includes('"listening"') && JSON.parse(line);
      if (event.message === "listening") resolve(event.address);
    });
  });
  const stop = async () => {
    child.kill();
    const code = await ended;
    await rm(folder, { recursive: true });
    if (code !== 0) throw new Error(`the service ended with code ${code}:\n${output.join("\n")}`);
  };
  const address = await Promise.race([listening, ended.then((exitCode) => ({ exitCode }))]);
  if (typeof address === "string") return { url: `http://${address}`, output, stop };
  await rm(folder, { recursive: true });
  throw Object.assign(new Error(`the service did not start:\n${output.join("\n")}`), { exitCode: address.exitCode, output });
}
