"""The commands of the README's section on production, as they stand there."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from compose import SERVICES, accepts, free_port, start, start_kms, until
from project import DEPLOY, ROOT, run
from test_settings import BINARY

README = (ROOT / "README.md").read_text()
BLOCK = r"(?ms)^<!-- production: {} -->\n```sh\n(.*?)^```"


class Production(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="wfs-production-")
        self.addCleanup(directory.cleanup)
        self.place = Path(directory.name)
        shutil.copytree(DEPLOY, self.place / "deploy")
        programs = self.place / "bin"
        programs.mkdir()
        (programs / "workflow-secrets").symlink_to(BINARY)
        grpcurl = shutil.which(os.environ.get("WFS_GRPCURL", "grpcurl"))
        (programs / "grpcurl").symlink_to(grpcurl)
        self.port, self.redis = free_port(), free_port()
        self.environment = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(self.place)}
        # What stands in the README, and what is here in its place.
        self.here = {
            "-h redis.example.internal": f"-h localhost -p {self.redis}",
            "redis.example.internal:6379": f"localhost:{self.redis}",
            "localhost:8443": f"localhost:{self.port}",
            "/var/log/workflow-secrets": str(self.place),
        }

    def block(self, title):
        (commands,) = re.findall(BLOCK.format(title), README)
        for there, here in self.here.items():
            commands = commands.replace(there, here)
        self.assertNotIn("example.internal", commands)
        return commands

    def run_block(self, title):
        done = run(
            "bash", "-euo", "pipefail", "-c", self.block(title), cwd=self.place,
            env=self.environment,
        )
        self.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout

    def start_redis(self):
        config = (DEPLOY / "compose/redis.conf").read_text()
        kept = [line for line in config.splitlines() if line.split(" ")[0] in (
            "appendonly", "appendfsync", "maxmemory", "maxmemory-policy",
        )]
        self.assertEqual(len(kept), 4)
        certs = self.place / "certs"
        (self.place / "redis.conf").write_text("\n".join([
            *kept, "bind 127.0.0.1", "port 0", f"tls-port {self.redis}", f"dir {self.place}",
            f"tls-cert-file {certs}/server.crt", f"tls-key-file {certs}/server.key",
            f"tls-ca-cert-file {certs}/ca.crt", "tls-auth-clients no\n",
        ]))
        server = start(
            self, "redis-server", self.place / "redis.conf", stdout=subprocess.DEVNULL
        )
        until(self, server, lambda: accepts(self.redis))

    def test_what_the_readme_says_works(self):
        # Redis needs a certificate before its user can be made.
        self.assertEqual(run(DEPLOY / "dev-certs.sh", self.place / "certs").returncode, 0)
        self.start_redis()
        self.assertIn("OK", self.run_block("prepare").split())

        endpoint, arn = start_kms(self)
        region = SERVICES["workflow-secrets"]["environment"]["WORKFLOW_SECRETS_KMS_REGION"]
        commands = self.block("serve")
        (example,) = re.findall(r"--kms-key (arn:aws:kms:\S+)", commands)
        self.assertEqual(example.split(":")[:3], arn.split(":")[:3])
        log = (self.place / "log").open("wb")
        self.addCleanup(log.close)
        server = start(
            self, "bash", "-c", f"exec {commands.replace(example, arn)}", cwd=self.place,
            stdout=log, stderr=log,
            env=self.environment | {
                "WORKFLOW_SECRETS_LISTEN": f"127.0.0.1:{self.port}",
                "WORKFLOW_SECRETS_KMS_ENDPOINT": endpoint,
                "AWS_REGION": region, "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
            },
        )
        until(self, server, lambda: accepts(self.port))

        value = "sk_test_51H8aBcDeF"
        request = {"workspace": "acme", "name": "STRIPE_KEY", "value": value}
        (self.place / "secret.json").write_text(json.dumps(request))
        answers = self.run_block("use")
        self.assertIn('"version": "1"', answers)
        self.assertIn(f'"value": "{value}"', answers)
        audit = (self.place / "audit.jsonl").read_text()
        self.assertIn('"resolve"', audit)
        stored = b"".join(
            path.read_bytes() for path in (self.place / "appendonlydir").iterdir()
        )
        self.assertIn(b"workflow-secrets:{acme}:records", stored)
        for told in (audit.encode(), stored, (self.place / "log").read_bytes()):
            self.assertNotIn(value.encode(), told)


if __name__ == "__main__":
    unittest.main()
