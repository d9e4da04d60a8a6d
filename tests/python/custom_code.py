"""Code of a custom-code node: custom_code.py PART [FILE...]

Run by tests/integration/examples.rs through the programs in examples/.
"""

import base64
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

TEXT = Path("context.json").read_text()
SECRETS = json.loads(TEXT)["secrets"]
KEY = SECRETS["stripe"]


def say(text, to=sys.stdout):
    to.write(text)
    to.flush()


def wait_for(file):
    while not Path(file).exists():
        time.sleep(0.02)


def shows():
    modes = [oct(stat.S_IMODE(os.stat(path).st_mode)) for path in (".", "context.json")]
    say(f"modes {modes} of {os.listdir()}\nenvironment {sorted(os.environ)}\n")
    say(f"secrets {SECRETS}\n{TEXT[TEXT.index('config') - 1 :]}\n")
    say(f"raw {KEY}\nbase64 {base64.b64encode(KEY.encode()).decode()}\nsplit {KEY[:9]}")
    time.sleep(0.3)
    say(f"{KEY[9:]}\n")
    say(f"oops {KEY}\n", sys.stderr)


def much():
    say(f"{'x' * 1000} {KEY}\n" * 2500)


def floods():
    """Writes much once the first file is there; makes the second when that is done."""
    say("ready\n")
    wait_for(sys.argv[2])
    much()
    Path(sys.argv[3]).touch()


def fails():
    say(f"oops {KEY}\n", sys.stderr)
    sys.exit(3)


def hangs():
    child = subprocess.Popen(["sleep", "1000"])
    say(f"{KEY} {os.getpid()} {child.pid}\n")
    time.sleep(1000)


def leaves():
    child = subprocess.Popen(["sleep", "1000"])
    say(f"{KEY} {os.getpid()} {child.pid}\n")


def marks():
    Path(sys.argv[2]).touch()


def waits():
    """Ends a first part in half a value, and goes on once the file is there."""
    say(f"first {KEY}\nthen {KEY[:9]}")
    say(f"first {KEY}\n", sys.stderr)
    wait_for(sys.argv[2])
    say(f"{KEY[9:]} last {KEY}\n")


globals()[sys.argv[1]]()
