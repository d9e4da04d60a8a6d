"""Runs the tour of README.md against a fresh `workflow-secrets dev`.

    tour.py [--binary PATH] [--update]

Between `<!-- tour -->` and `<!-- /tour -->`, each line of a ```console block
that starts with `$ ` is a command; it goes on over lines that end with a
backslash. What follows, up to the next command, is what it prints. Uids, etags
and times differ from run to run and are compared by their form only. The
README's address and data directory stand for those of the server started here.

Without --update, a difference is shown and ends with status 1. With it, the
README gets the real output.
"""

import argparse
import difflib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from project import ROOT, run

README = ROOT / "README.md"
ADDRESS = "127.0.0.1:7443"
DATA = ".workflow-secrets/"
BEGIN, END = "<!-- tour -->", "<!-- /tour -->"

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
VARYING = [
    (re.compile(rf"\b{UUID}-[0-9a-f]{{1,16}}\b"), "<etag>"),
    (re.compile(rf"\b{UUID}\b"), "<uid>"),
    (re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"), "<time>"),
]


def without_varying(lines):
    text = "\n".join(lines)
    for pattern, name in VARYING:
        text = pattern.sub(name, text)
    return text.split("\n")


def parse(lines):
    """Splits a text into lines to keep and (command lines, output lines)."""
    parts, in_tour, in_block = [], False, False
    for line in lines:
        if line in (BEGIN, END):
            in_tour = line == BEGIN
        starts = in_tour and line == "```console"
        ends = in_block and line == "```"
        in_block = (in_block or starts) and not ends
        last = parts[-1] if parts else None
        if not in_block or starts:
            parts.append(line)
        elif isinstance(last, tuple) and not last[1] and last[0][-1].endswith("\\"):
            last[0].append(line)
        elif line.startswith("$ "):
            parts.append(([line], []))
        elif isinstance(last, tuple):
            last[1].append(line)
        else:
            raise SystemExit(f"README: output before any command: {line}")
    if in_tour or not any(isinstance(part, tuple) for part in parts):
        raise SystemExit(f"README: no tour between {BEGIN} and {END}")
    return parts


class Dev:
    """A `workflow-secrets dev` of its own, on a free port, in a new directory."""

    def __init__(self, binary):
        self.binary = binary

    def __enter__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.directory = tempfile.TemporaryDirectory(prefix="wfs-tour-")
        self.data = f"{self.directory.name}/data/"
        self.log = open(Path(self.directory.name) / "log", "w+", encoding="utf-8")
        self.process = subprocess.Popen(
            [self.binary, "dev", "--listen", self.address, "--data-dir", self.data],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT,
        )
        host, port = self.address.split(":")
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                return self
            except OSError:
                if self.process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
            self.log.seek(0)
            said = self.log.read()
            self.__exit__()
            raise SystemExit(f"`workflow-secrets dev` did not start:\n{said}")

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        self.directory.cleanup()

    def answer(self, command):
        text = "\n".join(command).removeprefix("$ ")
        text = text.replace(ADDRESS, self.address).replace(DATA, self.data)
        done = run("bash", "-c", text, cwd=ROOT, timeout=30)
        said = done.stdout.replace(self.address, ADDRESS).replace(self.data, DATA)
        return said.splitlines()


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--binary", default=os.environ.get("WFS_BINARY"))
    arguments.add_argument("--update", action="store_true", help="rewrite README.md")
    options = arguments.parse_args()
    if not options.binary:
        arguments.error("--binary or WFS_BINARY is needed")
    if "WFS_GRPCURL" in os.environ:
        place = Path(os.environ["WFS_GRPCURL"]).parent
        os.environ["PATH"] = f"{place}{os.pathsep}{os.environ['PATH']}"

    before = README.read_text(encoding="utf-8").split("\n")
    after, same = [], True
    with Dev(options.binary) as dev:
        for part in parse(before):
            if isinstance(part, str):
                after.append(part)
                continue
            command, shown = part
            said = dev.answer(command)
            if without_varying(said) == without_varying(shown):
                said = shown
            else:
                same = False
            after += command + said
    if options.update:
        README.write_text("\n".join(after), encoding="utf-8")
    elif not same:
        sys.stdout.writelines(
            line + "\n"
            for line in difflib.unified_diff(before, after, "README.md", "real", lineterm="")
        )
        raise SystemExit(1)


if __name__ == "__main__":
    main()
