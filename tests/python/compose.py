"""Starts what deploy/compose.yaml starts, without containers."""

import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path

import yaml

from project import DEPLOY, run

SERVICES = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]


def replaced(text, old, new):
    assert text.count(old) == 1, old
    return text.replace(old, new)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(test, *command, **options):
    """Starts a process that ends with the test."""
    process = subprocess.Popen(
        [str(part) for part in command], stdin=subprocess.DEVNULL, **options
    )
    test.addCleanup(process.wait, 10)
    test.addCleanup(process.kill)
    return process


def until(test, process, condition):
    """Waits for a condition while a process lives."""
    deadline = time.monotonic() + 20
    while not condition():
        test.assertIsNone(process.poll(), f"{process.args} ended")
        test.assertLess(time.monotonic(), deadline, f"{process.args} is not ready")
        time.sleep(0.05)


def accepts(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


class Redis:
    """The Redis of compose.yaml, started by the script of its container."""

    def __init__(self, test, place):
        self.port = free_port()
        self.password_file = Path(place) / "password"
        self.password_file.write_text(secrets.token_hex(16) + "\n")
        self.password_file.chmod(0o600)
        config = (DEPLOY / "compose/redis.conf").read_text()
        config = replaced(config, "bind * -::*", "bind 127.0.0.1")
        config = replaced(config, "port 6379", f"port {self.port}")
        config = replaced(config, "dir /data", f"dir {place}")
        (Path(place) / "redis.conf").write_text(f"{config}user tester on nopass ~* +@all\n")
        self.here = {
            "$$": "$",
            "/redis/password": str(self.password_file),
            "/etc/redis/redis.conf": f"{place}/redis.conf",
            "/etc/redis/rights.acl": str(DEPLOY / "redis-rights.acl"),
            "/tmp/redis.conf": f"{place}/whole.conf",
        }
        (script,) = SERVICES["redis"]["command"]
        entrypoint = SERVICES["redis"]["entrypoint"]
        server = start(test, *entrypoint, self.local(script), stdout=subprocess.DEVNULL)
        until(test, server, lambda: self.command("PING") == "PONG")

    def local(self, script):
        for container, here in self.here.items():
            script = script.replace(container, here)
        return script

    def command(self, *words, user="workflow-secrets"):
        login = ["--user", user] if user else []
        password = {"REDISCLI_AUTH": self.password_file.read_text().strip()} if user else {}
        done = run(
            "redis-cli", "-h", "127.0.0.1", "-p", self.port, *login, *words,
            env=os.environ | password,
        )
        return done.stdout.strip()


def start_kms(test):
    """moto in place of the KMS emulator, with the alias that compose uses. Its
    URL, and the ARN of the key."""
    import boto3

    port = free_port()
    server = start(
        test, sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", port,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    until(test, server, lambda: accepts(port))
    environment = SERVICES["workflow-secrets"]["environment"]
    endpoint = f"http://127.0.0.1:{port}"
    client = boto3.client(
        "kms", endpoint_url=endpoint, region_name=environment["WORKFLOW_SECRETS_KMS_REGION"],
        aws_access_key_id="test", aws_secret_access_key="test",
    )
    key = client.create_key()["KeyMetadata"]
    client.create_alias(
        AliasName=environment["WORKFLOW_SECRETS_KMS_KEY"], TargetKeyId=key["KeyId"]
    )
    return endpoint, key["Arn"]
