// Starts the built binary in sandbox mode, on a free port and in its own folder.

import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const BINARY = process.env.IMAGESVC_BINARY ?? fileURLToPath(new URL("../target/debug/imagesvc", import.meta.url));

/// Starts the service with these settings in addition to its own, and waits until it listens. If it
/// does not start, the error carries its output and its exit code.
export async function start(settings = {}) {
  const folder = await mkdtemp(join(tmpdir(), "imagesvc-"));
  const own = {
    IMAGESVC_SANDBOX: "true",
    IMAGESVC_HOST: "127.0.0.1",
    IMAGESVC_PORT: "0",
    IMAGESVC_MIN_FREE_BYTES: "0",
    IMAGESVC_DRAIN_DELAY: "0",
    IMAGESVC_LOG_FORMAT: "json",
  };
  const child = spawn(BINARY, { cwd: folder, env: { ...own, ...settings }, stdio: ["ignore", "ignore", "pipe"] });
  const ended = new Promise((resolve, reject) => child.once("error", reject).once("close", resolve));
  process.once("exit", () => child.kill()); // ends the service with the tests, however they end
  const said = [];
  const listening = new Promise((resolve) => {
    createInterface(child.stderr).on("line", (line) => {
      said.push(line);
      const event = line.includes('"listening"') && JSON.parse(line);
      if (event.message === "listening") resolve(event.address);
    });
  });
  const stop = async () => {
    child.kill();
    const code = await ended;
    await rm(folder, { recursive: true });
    if (code !== 0) throw new Error(`it ended with ${code}:\n${said.join("\n")}`);
  };
  const address = await Promise.race([listening, ended.then((exitCode) => ({ exitCode }))]);
  if (typeof address === "string") return { url: `http://${address}`, said, stop };
  await rm(folder, { recursive: true });
  throw Object.assign(new Error(`it did not start:\n${said.join("\n")}`), { exitCode: address.exitCode, said });
}
