#!/usr/bin/env python3
"""Runs one custom-code node, as an executor of workflows does.

    run_node.py --address HOST:PORT --ca FILE --cert FILE --key FILE \\
        --workspace ID [--credential SECRET[=ALIAS]]... [--config FILE] \\
        [--workflow-id ID] [--run-id ID] [--timeout SECONDS] -- COMMAND...

The code gets its secrets in `context.json` in its working directory:
`{"secrets": {ALIAS: VALUE}, "config": ...}`. What it writes to stdout and stderr
comes out here, without the values.

Exit codes:
    0  the code has succeeded
    1  the code has failed, or could not be started
    2  wrong arguments
    3  the service has refused; the code has not run
    4  the service was not available; the code has not run: try again later
    5  the code has run out of time and was killed
    6  output was withheld because it could not be redacted
    7  context.json could not be written or removed
    128 + n  ended by signal n; the code was killed

This is no sandbox: run the code as a user of its own or in a container, or it
can read this program's key. Set TMPDIR to a tmpfs: values reach no disk then,
and what a SIGKILL leaves behind goes with the machine.

Redact is a backstop: code that wants to get a value out does. It looks for the
values of the moment when a stream was opened: of a secret that is rotated while
the code runs, the old value is shown once a stream was cut and opened again.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
from output import CHUNK, Output, opening
from service import TRANSIENT, connect, explained, render, services, tell

DRAIN = 30  # seconds for the rest of the output when the code has ended


@contextmanager
def context_directory(rendered):
    """A directory of mode 0700 with context.json; gone however this ends."""
    directory = Path(tempfile.mkdtemp(prefix="node-"))
    try:
        # `rendered` is JSON as it is: reading it would respell its numbers.
        secrets = json.dumps(dict(rendered.context_secrets))
        context = f'{{"secrets": {secrets}, "config": {rendered.rendered}}}'
        # Born with its mode, and never a file or link that was there before.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with open(os.open(directory / "context.json", flags, 0o600), "wb") as file:
            file.write(context.encode())
        yield directory
    finally:
        directory.chmod(0o700)  # the code may have changed it
        with suppress(OSError):
            (directory / "context.json").unlink()  # most of all
        shutil.rmtree(directory)


async def execute(options, directory, outputs):
    """Runs the code, passes its outputs on; returns whether it ended in time, and any fault."""
    try:
        process = subprocess.Popen(
            options.command,
            cwd=directory,
            # Nothing of this program's own environment.
            env={"PATH": os.defpath, "HOME": str(directory), "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        return True, f"cannot be started: {error.strerror}"
    pipes = []
    try:
        try:
            for pipe in (process.stdout, process.stderr):
                pipes.append(await reader(pipe))
            passing = [asyncio.create_task(o.pass_on(s)) for o, (s, _) in zip(outputs, pipes)]
            in_time = True
            try:
                async with asyncio.timeout(options.timeout):
                    await asyncio.to_thread(process.wait)
            except TimeoutError:
                in_time = False
        finally:
            # With all that it has started.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        # A process that has left the group may hold the pipes open.
        await asyncio.wait(passing, timeout=DRAIN)
        for output, task in zip(outputs, passing):
            if task.done():
                task.result()
            else:
                task.cancel()
                output.fail(f"not through within {DRAIN} s of the code's end")
    finally:
        # Not left to their end, which may come after that of the loop.
        for _, transport in pipes:
            transport.close()
    status = await asyncio.to_thread(process.wait)
    return in_time, f"it ended with status {status}" if status else None


async def reader(pipe):
    stream = asyncio.StreamReader(limit=CHUNK)
    protocol = lambda: asyncio.StreamReaderProtocol(stream)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(protocol, pipe)
    return stream, transport


async def run(options):
    end_on_signals(options)
    async with connect(options) as channel:
        stub = services.SecretsServiceStub(channel)
        try:
            rendered = await render(stub, options)
            outputs = [Output(stub, opening(options, rendered), number) for number in (1, 2)]
            # Before the code runs: what it does could not be shown without.
            for output in outputs:
                await output.patience.call(output.open)
        except grpc.RpcError as error:
            tell(f"the code has not run: {explained(error)}")
            return 4 if error.code() in TRANSIENT else 3
        try:
            with context_directory(rendered) as directory:
                in_time, fault = await execute(options, directory, outputs)
        except OSError as error:
            tell(f"context.json: {error}")
            return 7
    for output in outputs:
        output.report()
    if not in_time:
        tell(f"the code was killed after {options.timeout:g} s")
    elif fault:
        tell(f"the code has failed: {fault}")
    if any(output.failure for output in outputs):
        return 6
    return 5 if not in_time else int(fault is not None)


def end_on_signals(options):
    """Ends on a signal, past every `finally`."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()

    def end(number):
        options.ended_by = number
        task.cancel()

    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end, number)


def file(path):
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path}: {error.strerror}") from None


def text(path):
    return file(path).decode()


def arguments():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--address", required=True)
    for name in ("--ca", "--cert", "--key"):
        parser.add_argument(name, type=file, required=True)
    parser.add_argument("--workspace", required=True)
    parser.add_argument("--credential", action="append", default=[])
    parser.add_argument("--config", type=text)
    for name in ("--workflow-id", "--run-id"):
        parser.add_argument(name, default="")
    parser.add_argument("--timeout", type=float, default=60)
    parser.add_argument("command", nargs="+")
    return parser.parse_args()


def main():
    options = arguments()
    try:
        return asyncio.run(run(options))
    except asyncio.CancelledError:
        return 128 + options.ended_by


if __name__ == "__main__":
    sys.exit(main())
