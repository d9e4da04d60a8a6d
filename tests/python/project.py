"""Where things are, for the tests in this directory."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"

# Programs that tests/run.sh installed lie beside the interpreter.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def run(*command, **options):
    """Runs a command; both streams come back as one text."""
    options = {"stdin": subprocess.DEVNULL, "timeout": 120} | options
    return subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **options,
    )


def read_json(path):
    """A JSON document; refuses a key that stands in an object twice."""

    def unique(pairs):
        keys = [key for key, _ in pairs]
        assert len(keys) == len(set(keys)), f"{path}: duplicate key in {keys}"
        return dict(pairs)

    return json.loads(path.read_text(), object_pairs_hook=unique)
