"""The service: connecting, asking again, and what its errors say."""

import asyncio
import random
import sys
from pathlib import Path

import grpc
import grpc_tools
from google.rpc import error_details_pb2 as error_details
from grpc_status import rpc_status

# Compiles the proto file now. Better do so when you build: python -m grpc_tools.protoc
PROTOS = Path(__file__).resolve().parents[2] / "proto"
sys.path += [str(PROTOS), str(Path(grpc_tools.__file__).parent / "_proto")]
api, services = grpc.protos_and_services("workflowsecrets/v1/secrets.proto")

TRIES = 6  # in a row, each twice as long after the one before
TRANSIENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def tell(message):
    print(f"run_node: {message}", file=sys.stderr, flush=True)


def connect(options):
    credentials = grpc.ssl_channel_credentials(options.ca, options.key, options.cert)
    settings = [
        # Documents of 4 MiB and 100 secrets of 64 KiB; gRPC takes 4 MiB.
        ("grpc.max_receive_message_length", 16 * 1024 * 1024),
        # A connection that died without a word is noticed.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]
    return grpc.aio.secure_channel(options.address, credentials, settings)


def detail(error, kind):
    """One of the details of an error; empty if it has none of this kind."""
    status, message = rpc_status.from_call(error), kind()
    for any_detail in status.details if status else []:
        if any_detail.Unpack(message):
            break
    return message


def explained(error):
    """An error in words. The service puts no values into errors."""
    reason = detail(error, error_details.ErrorInfo).reason
    lines = [f"{error.code().name} {reason}".strip() + f": {error.details()}"]
    for field in detail(error, error_details.BadRequest).field_violations:
        lines.append(f"  {field.field}: {field.description}")
    for violation in detail(error, error_details.PreconditionFailure).violations:
        lines.append(f"  {violation.type} {violation.subject} {violation.description}".rstrip())
    return "\n".join(lines)


class Patience:
    """Tries again where that may help, as late as the service asks for."""

    def __init__(self):
        self.tries = 0

    async def wait(self, error):
        """Returns when it is time for the next try; raises `error` if there is none."""
        retry = detail(error, error_details.RetryInfo)
        again = error.code() in TRANSIENT or retry.HasField("retry_delay")
        self.tries += 1
        if self.tries >= TRIES or not again:
            raise error
        delay = max(retry.retry_delay.ToMilliseconds() / 1000, 0.25 * 2**self.tries)
        # Not all at once, when many were refused at once.
        delay *= random.uniform(1, 1.25)
        tell(f"{explained(error)}\n  trying again in {delay:.1f} s")
        await asyncio.sleep(delay)

    async def call(self, operation):
        while True:
            try:
                return await operation()
            except grpc.RpcError as error:
                await self.wait(error)


def render(stub, options):
    """Config and credentials, all values of one moment, in one round trip."""
    pairs = [credential.partition("=") for credential in options.credential]
    request = api.RenderTemplateRequest(
        workspace=options.workspace,
        json="{}" if options.config is None else options.config,
        credentials=[api.Credential(secret=name, alias=alias) for name, _, alias in pairs],
        workflow_id=options.workflow_id,
        run_id=options.run_id,
    )
    return Patience().call(lambda: stub.RenderTemplate(request, timeout=15))
