/** The service: connecting, asking again, and what its errors say. */

import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const protos = loader.loadSync(["workflowsecrets/v1/secrets.proto", "google_rpc.proto"], {
  includeDirs: ["../../proto", "."].map((to) => fileURLToPath(new URL(to, import.meta.url))),
  keepCase: true,
  enums: String,
  longs: Number,
});
const { SecretsService } = grpc.loadPackageDefinition(protos).workflowsecrets.v1;

/** In a row, each twice as long after the one before. */
const TRIES = 6;

export const transient = ({ code }) =>
  code === grpc.status.UNAVAILABLE || code === grpc.status.DEADLINE_EXCEEDED;

export function tell(message) {
  process.stderr.write(`run-node: ${message}\n`);
}

export function connect({ address, ca, cert, key }) {
  return new SecretsService(address, grpc.credentials.createSsl(ca, key, cert), {
    // Documents of 4 MiB and 100 secrets of 64 KiB; gRPC takes 4 MiB.
    "grpc.max_receive_message_length": 16 * 1024 * 1024,
    // A connection that died without a word is noticed.
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 10_000,
  });
}

/** One of the details of an error, if it has one of this kind. */
function detail(error, kind) {
  for (const bytes of error.metadata?.get("grpc-status-details-bin") ?? []) {
    for (const any of protos["google.rpc.Status"].deserialize(bytes).details ?? []) {
      if (any.type_url === `type.googleapis.com/google.rpc.${kind}`) {
        return protos[`google.rpc.${kind}`].deserialize(any.value);
      }
    }
  }
}

/** An error in words. The service puts no values into errors. */
export function explained(error) {
  const reason = detail(error, "ErrorInfo")?.reason ?? "";
  const lines = [`${`${grpc.status[error.code]} ${reason}`.trim()}: ${error.details}`];
  for (const { field, description } of detail(error, "BadRequest")?.field_violations ?? []) {
    lines.push(`  ${field}: ${description}`);
  }
  const violations = detail(error, "PreconditionFailure")?.violations ?? [];
  for (const { type, subject, description } of violations) {
    lines.push(`  ${type} ${subject} ${description ?? ""}`.trimEnd());
  }
  return lines.join("\n");
}

/** Tries again where that may help, as late as the service asks for. */
export class Patience {
  tries = 0;

  /** Returns when it is time for the next try; throws `error` if there is none. */
  async wait(error) {
    const asked = detail(error, "RetryInfo")?.retry_delay;
    this.tries += 1;
    if (this.tries >= TRIES || !(transient(error) || asked)) throw error;
    const seconds = asked ? (asked.seconds ?? 0) + (asked.nanos ?? 0) / 1e9 : 0;
    // Not all at once, when many were refused at once.
    const delay = Math.max(seconds, 0.25 * 2 ** this.tries) * (1 + Math.random() / 4);
    tell(`${explained(error)}\n  trying again in ${delay.toFixed(1)} s`);
    await sleep(delay * 1000);
  }

  async call(operation) {
    for (;;) {
      try {
        return await operation();
      } catch (error) {
        await this.wait(error);
      }
    }
  }
}

/** Config and credentials, all values of one moment, in one round trip. */
export function render(client, options) {
  const request = {
    workspace: options.workspace,
    json: options.config,
    credentials: options.credential.map((credential) => {
      const [secret, alias] = credential.split("=", 2);
      return { secret, alias };
    }),
    workflow_id: options["workflow-id"],
    run_id: options["run-id"],
  };
  const once = (resolve, reject) =>
    client.RenderTemplate(request, { deadline: Date.now() + 15_000 }, (error, answer) =>
      error ? reject(error) : resolve(answer),
    );
  return new Patience().call(() => new Promise(once));
}
