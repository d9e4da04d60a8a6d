/** The output of code, without the values of secrets. */

import { EventEmitter, once } from "node:events";

import { Patience, explained, tell } from "./service.mjs";

/** Bytes sent at once; a message may have 256 KiB. */
const CHUNK = 64 * 1024;
/** Bytes kept until an answer stands for them. */
const LIMIT = 1024 * 1024;
/** Milliseconds after which a stream that is cut was worth opening. */
const LASTING = 60_000;

/** Look for what the code gets; if that is nothing, for all there is. */
export function opening(options, rendered) {
  const names = (rendered.used ?? []).map(({ name }) => name);
  return {
    workspace: options.workspace,
    names,
    all_names: names.length === 0,
    workflow_id: options["workflow-id"],
    run_id: options["run-id"],
  };
}

/** One output of the code on its way through Redact. Shows what comes back, and only that. */
export class Output {
  patience = new Patience();
  failure = null;
  withheld = 0;
  tally = null;
  cuts = 0;
  #call = null; // the stream
  #opened = 0;
  #pending = Buffer.alloc(0); // read, but no answer stands for it yet
  #answered = 0; // bytes of this stream that answers stand for
  #ended = false;
  #over = new WeakSet(); // streams that are
  #events = new EventEmitter();

  constructor(client, opening, name) {
    Object.assign(this, { client, opening, name });
    // #show tells of them.
    process[name].on("error", () => {});
  }

  async open() {
    const call = this.client.Redact();
    // Whoever reads the answers learns of errors; a write may meet them too.
    call.on("error", () => {});
    call.write({ open: this.opening });
    // Comes once the service has all values to look for.
    await once(call, "metadata");
    this.#call = call;
    this.#opened = Date.now();
  }

  /** Shows the output up to its end. If that fails, the rest is read but not shown. */
  async passOn(source) {
    const reading = this.#read(source);
    try {
      await this.#redact();
    } catch (error) {
      this.fail(error.metadata ? explained(error) : error.message);
    }
    await reading;
  }

  async #read(source) {
    for await (const chunk of source) {
      if (this.failure) {
        this.withheld += chunk.length;
        continue;
      }
      this.#pending = Buffer.concat([this.#pending, chunk]);
      this.#changed();
      while (this.#pending.length > LIMIT) await this.#change();
    }
    this.#ended = true;
    this.#changed();
  }

  async #redact() {
    for (;;) {
      try {
        if (!this.#call) await this.open();
        return await this.#exchange(this.#call);
      } catch (error) {
        if (this.#call) {
          this.cuts += 1;
          if (Date.now() - this.#opened > LASTING) this.patience.tries = 0;
        }
        this.#call = null;
        await this.patience.wait(error);
        // Code that is silent for long needs no stream meanwhile.
        while (!this.#pending.length && !this.#ended) await this.#change();
        if (!this.#pending.length) return;
      }
    }
  }

  /** One stream: begins with what no answer stands for yet. */
  async #exchange(call) {
    this.#answered = 0;
    const feeding = this.#feed(call);
    try {
      for await (const answer of call) {
        await this.#show(answer.chunk);
        const answered = answer.input_bytes ?? 0;
        this.#pending = this.#pending.subarray(answered - this.#answered);
        this.#answered = answered;
        this.patience.tries = 0;
        this.tally = answer.tally ?? null;
        this.#changed();
      }
    } finally {
      this.#over.add(call);
      this.#changed();
      await feeding;
    }
    if (!this.tally || this.#pending.length) throw new Error("the stream has ended early");
  }

  async #feed(call) {
    let sent = 0;
    while (!this.#over.has(call)) {
      const start = sent - this.#answered;
      const chunk = this.#pending.subarray(start, start + CHUNK);
      if (chunk.length) {
        // Not waited for: what is pending is bounded.
        call.write({ chunk });
        sent += chunk.length;
      } else if (this.#ended) {
        call.end();
        return;
      } else {
        await this.#change();
      }
    }
  }

  #show(chunk) {
    return new Promise((resolve, reject) => {
      if (!chunk?.length) return resolve();
      process[this.name].write(chunk, (error) => (error ? reject(error) : resolve()));
    });
  }

  #change() {
    return once(this.#events, "change");
  }

  #changed() {
    this.#events.emit("change");
  }

  fail(why) {
    this.failure = why;
    this.withheld += this.#pending.length;
    this.#pending = Buffer.alloc(0);
    this.#changed();
  }

  report() {
    const note = (text) => tell(`${this.name}: ${text}`);
    if (this.failure) note(`${this.withheld} bytes withheld: ${this.failure}`);
    if (this.cuts) note(`the stream was cut (${this.cuts}), so the tally is not complete`);
    for (const { name, encoding, count } of this.tally?.masked ?? []) {
      note(`${name} masked as ${encoding.replace("VALUE_ENCODING_", "")}: ${count}`);
    }
    for (const { name, reason } of this.tally?.unmasked ?? []) {
      note(`${name} not looked for: ${reason.replace("REASON_", "")}`);
    }
  }
}
