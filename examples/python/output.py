"""The output of code, without the values of secrets."""

import asyncio
import os
from contextlib import suppress

import grpc
from service import Patience, api, explained, tell

CHUNK = 64 * 1024  # bytes read and sent at once; a message may have 256 KiB
LIMIT = 1024 * 1024  # bytes kept until an answer stands for them
LASTING = 60  # seconds after which a stream that is cut was worth opening


def opening(options, rendered):
    """Look for what the code gets; if that is nothing, for all there is."""
    names = [used.name for used in rendered.used]
    return api.RedactOpen(
        workspace=options.workspace,
        names=names,
        all_names=not names,
        workflow_id=options.workflow_id,
        run_id=options.run_id,
    )


class Output:
    """One output of the code on its way through Redact. Shows what comes back, and only that."""

    def __init__(self, stub, opening, descriptor):
        self.stub, self.opening, self.descriptor = stub, opening, descriptor
        self.name = {1: "stdout", 2: "stderr"}[descriptor]
        self.patience = Patience()
        self.call = None  # the stream
        self.pending = bytearray()  # read, but no answer stands for it yet
        self.answered = asyncio.Event()
        self.cuts, self.tally = 0, None
        self.failure, self.withheld = None, 0

    async def open(self):
        call = self.stub.Redact()
        await call.write(api.RedactRequest(open=self.opening))
        # Comes once the service has all values to look for.
        await call.initial_metadata()
        if call.done():
            await call.read()  # raises why
        self.call, self.opened = call, asyncio.get_running_loop().time()

    async def pass_on(self, source):
        """Shows the output up to its end. If that fails, the rest is read but not shown."""
        try:
            await self.redact(source)
        except grpc.RpcError as error:
            self.fail(explained(error))
        except (OSError, EOFError) as error:
            self.fail(str(error))
        while data := await source.read(CHUNK):
            self.withheld += len(data)

    async def redact(self, source):
        while True:
            try:
                if not self.call:
                    await self.open()
                return await self.exchange(source)
            except grpc.RpcError as error:
                if self.call:
                    self.cuts += 1
                    if asyncio.get_running_loop().time() - self.opened > LASTING:
                        self.patience.tries = 0
                self.call = None
                await self.patience.wait(error)
                # Code that is silent for long needs no stream meanwhile.
                self.pending += b"" if self.pending else await source.read(CHUNK)
                if not self.pending:
                    return

    async def exchange(self, source):
        """One stream: begins with what no answer stands for yet."""
        feeding = asyncio.create_task(self.feed(self.call, source))
        answered = 0
        try:
            async for answer in self.call:
                await asyncio.to_thread(write, self.descriptor, answer.chunk)
                del self.pending[: answer.input_bytes - answered]
                answered = answer.input_bytes
                self.answered.set()
                self.patience.tries = 0
                if answer.HasField("tally"):
                    self.tally = answer.tally
        finally:
            feeding.cancel()
            await asyncio.wait([feeding])  # only one may read the source
        if self.tally is None or self.pending:
            raise EOFError("the stream has ended early")

    async def feed(self, call, source):
        # If the stream is cut, whoever reads the answers learns why.
        with suppress(grpc.RpcError, asyncio.InvalidStateError):
            backlog = bytes(self.pending)
            for start in range(0, len(backlog), CHUNK):
                await call.write(api.RedactRequest(chunk=backlog[start : start + CHUNK]))
            while data := await source.read(CHUNK):
                self.pending += data
                await call.write(api.RedactRequest(chunk=data))
                while len(self.pending) > LIMIT:
                    self.answered.clear()
                    await self.answered.wait()
            await call.done_writing()

    def fail(self, why):
        self.failure = why
        self.withheld += len(self.pending)
        self.pending.clear()

    def report(self):
        if self.failure:
            tell(f"{self.name}: {self.withheld} bytes withheld: {self.failure}")
        if self.cuts:
            tell(f"{self.name}: the stream was cut ({self.cuts}), so the tally is not complete")
        if self.tally is None:
            return
        for masked in self.tally.masked:
            encoding = api.ValueEncoding.Name(masked.encoding).removeprefix("VALUE_ENCODING_")
            tell(f"{self.name}: {masked.name} masked as {encoding}: {masked.count}")
        for unmasked in self.tally.unmasked:
            reason = api.UnmaskedSecret.Reason.Name(unmasked.reason).removeprefix("REASON_")
            tell(f"{self.name}: {unmasked.name} not looked for: {reason}")


def write(descriptor, data):
    while data:
        data = data[os.write(descriptor, data) :]
