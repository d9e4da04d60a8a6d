#!/usr/bin/env node
/**
 * Runs one custom-code node, as an executor of workflows does.
 *
 *     run-node.mjs --address HOST:PORT --ca FILE --cert FILE --key FILE \
 *         --workspace ID [--credential SECRET[=ALIAS]]... [--config FILE] \
 *         [--workflow-id ID] [--run-id ID] [--timeout SECONDS] -- COMMAND...
 *
 * The code gets its secrets in `context.json` in its working directory:
 * `{"secrets": {ALIAS: VALUE}, "config": ...}`. What it writes to stdout and
 * stderr comes out here, without the values.
 *
 * Exit codes:
 *     0  the code has succeeded
 *     1  the code has failed, or could not be started
 *     2  wrong arguments
 *     3  the service has refused; the code has not run
 *     4  the service was not available; the code has not run: try again later
 *     5  the code has run out of time and was killed
 *     6  output was withheld because it could not be redacted
 *     7  context.json could not be written or removed
 *     128 + n  ended by signal n; the code was killed
 *
 * This is no sandbox: run the code as a user of its own or in a container, or it
 * can read this program's key. Set TMPDIR to a tmpfs: values reach no disk then,
 * and what a SIGKILL leaves behind goes with the machine.
 *
 * Redact is a backstop: code that wants to get a value out does. It looks for the
 * values of the moment when a stream was opened: of a secret that is rotated while
 * the code runs, the old value is shown once a stream was cut and opened again.
 */

import { spawn } from "node:child_process";
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { constants, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";

import { Output, opening } from "./output.mjs";
import { connect, explained, render, tell, transient } from "./service.mjs";

/** Milliseconds for the rest of the output when the code has ended. */
const DRAIN = 30_000;

/** A directory of mode 0700 with context.json; gone however this program ends. */
function contextDirectory(rendered) {
  const directory = mkdtempSync(join(tmpdir(), "node-"));
  process.on("exit", () => {
    try {
      chmodSync(directory, 0o700); // the code may have changed it
      rmSync(join(directory, "context.json"), { recursive: true, force: true }); // most of all
      rmSync(directory, { recursive: true });
    } catch (error) {
      tell(`context.json: ${error.message}`);
      process.exitCode = 7;
    }
  });
  // `rendered` is JSON as it is: reading it would respell its numbers.
  const secrets = JSON.stringify(rendered.context_secrets ?? {});
  const context = `{"secrets": ${secrets}, "config": ${rendered.rendered}}`;
  // Born with its mode, and never a file or link that was there before.
  writeFileSync(join(directory, "context.json"), context, { flag: "wx", mode: 0o600 });
  return directory;
}

/** Runs the code, passes its outputs on; tells whether it ended in time, and any fault. */
async function execute({ command, timeout }, directory, outputs) {
  const code = spawn(command[0], command.slice(1), {
    cwd: directory,
    // Nothing of this program's own environment.
    env: { PATH: "/bin:/usr/bin", HOME: directory, LANG: "C.UTF-8" },
    stdio: ["ignore", "pipe", "pipe"],
    detached: true, // a process group of its own
  });
  const ended = new Promise((resolve) => {
    code.once("error", (error) => resolve(`cannot be started: ${error.code}`));
    code.once("exit", (status, signal) =>
      resolve(status === 0 ? null : `it ended with status ${status ?? signal}`),
    );
  });
  // With all that it has started.
  const kill = () => {
    try {
      if (code.pid) process.kill(-code.pid, "SIGKILL");
    } catch {
      // Nothing of it is left.
    }
  };
  process.prependListener("exit", kill);
  let inTime = true;
  const timer = setTimeout(() => {
    inTime = false;
    kill();
  }, timeout * 1000);
  const passing = outputs.map((output) => output.passOn(code[output.name]));
  const fault = await ended;
  clearTimeout(timer);
  kill();
  process.off("exit", kill);
  // A process that has left the group may hold the pipes open.
  const late = outputs.map(async (output, number) => {
    const through = passing[number].then(() => true);
    if (await Promise.race([through, sleep(DRAIN, false)])) return;
    output.fail(`not through within ${DRAIN / 1000} s of the code's end`);
  });
  await Promise.all(late);
  return { inTime, fault };
}

async function run(options) {
  const client = connect(options);
  let rendered, outputs, directory;
  try {
    rendered = await render(client, options);
    const open = opening(options, rendered);
    outputs = ["stdout", "stderr"].map((name) => new Output(client, open, name));
    // Before the code runs: what it does could not be shown without.
    for (const output of outputs) await output.patience.call(() => output.open());
  } catch (error) {
    if (!error.metadata) throw error;
    tell(`the code has not run: ${explained(error)}`);
    return transient(error) ? 4 : 3;
  }
  try {
    directory = contextDirectory(rendered);
  } catch (error) {
    tell(`context.json: ${error.code}`);
    return 7;
  }
  const { inTime, fault } = await execute(options, directory, outputs);
  for (const output of outputs) output.report();
  if (!inTime) tell(`the code was killed after ${options.timeout} s`);
  else if (fault) tell(`the code has failed: ${fault}`);
  if (outputs.some(({ failure }) => failure)) return 6;
  return inTime ? Number(fault !== null) : 5;
}

function parse() {
  const one = { type: "string" };
  const { values, positionals: command } = parseArgs({
    allowPositionals: true,
    options: {
      address: one,
      ca: one,
      cert: one,
      key: one,
      workspace: one,
      credential: { type: "string", multiple: true, default: [] },
      config: one,
      "workflow-id": { type: "string", default: "" },
      "run-id": { type: "string", default: "" },
      timeout: { type: "string", default: "60" },
    },
  });
  const missing = ["address", "ca", "cert", "key", "workspace"].filter((name) => !values[name]);
  if (missing.length) throw new Error(`missing: --${missing.join(", --")}`);
  if (!command.length) throw new Error("missing: -- COMMAND");
  if (!(values.timeout > 0)) throw new Error("--timeout: not a number of seconds");
  return {
    ...values,
    ca: readFileSync(values.ca),
    cert: readFileSync(values.cert),
    key: readFileSync(values.key),
    config: values.config ? readFileSync(values.config, "utf8") : "{}",
    timeout: Number(values.timeout),
    command,
  };
}

let options;
try {
  options = parse();
} catch (error) {
  tell(error.message);
  process.exit(2);
}
for (const signal of ["SIGHUP", "SIGINT", "SIGTERM"]) {
  process.on(signal, () => process.exit(128 + constants.signals[signal]));
}
process.exit(await run(options));
