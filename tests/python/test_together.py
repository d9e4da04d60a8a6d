"""compose.yaml as a whole, without containers: the program runs with the
settings, certificates, policy and Redis that stand there."""

import json
import os
import signal
import subprocess
import tempfile
import unittest
from pathlib import Path

from compose import SERVICES, Redis, free_port, start, start_kms, until
from project import DEPLOY, ROOT, run

BINARY = os.environ.get("WFS_BINARY", ROOT / "target/debug/workflow-secrets")
API = "workflowsecrets.v1.SecretsService"


class Together(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="wfs-together-")
        self.addCleanup(directory.cleanup)
        self.certs = Path(directory.name) / "certs"
        self.assertEqual(run(DEPLOY / "dev-certs.sh", self.certs).returncode, 0)
        redis = Redis(self, directory.name)
        self.port = free_port()
        self.paths = {
            "/certs/": f"{self.certs}/",
            "/redis/password": str(redis.password_file),
            "/etc/workflow-secrets/policy.toml": str(DEPLOY / "compose/policy.toml"),
            "redis://redis:6379": f"redis://127.0.0.1:{redis.port}",
            "http://kms:8080": start_kms(self)[0],
            "0.0.0.0:8443": f"127.0.0.1:{self.port}",
            "https://127.0.0.1:8443": f"https://127.0.0.1:{self.port}",
            "/usr/local/bin/workflow-secrets": str(BINARY),
        }
        service = SERVICES["workflow-secrets"]
        settings = {name: self.here(text) for name, text in service["environment"].items()}
        self.audit = Path(directory.name) / "audit"
        with self.audit.open("wb") as audit:
            self.process = start(
                self, BINARY, *service["command"], env=settings, stdout=audit,
                stderr=subprocess.DEVNULL,
            )
        until(self, self.process, lambda: self.probe() == 0)

    def here(self, text):
        for container, here in self.paths.items():
            text = text.replace(container, here)
        return text

    def probe(self):
        check = SERVICES["workflow-secrets"]["healthcheck"]["test"]
        self.assertEqual(check[0], "CMD")
        return run(*map(self.here, check[1:])).returncode

    def call(self, role, method, **message):
        done = run(
            os.environ.get("WFS_GRPCURL", "grpcurl"), "-cacert", self.certs / "ca.crt",
            "-cert", self.certs / f"{role}.crt", "-key", self.certs / f"{role}.key",
            "-d", json.dumps({"workspace": "ws"} | message),
            f"localhost:{self.port}", f"{API}/{method}",
        )
        return done.stdout

    def test_a_secret_goes_in_and_comes_out_for_whom_it_should(self):
        credentials = [{"secret": "KEY"}]
        created = self.call("platform", "CreateSecret", name="KEY", value="v1", request_id="r1")
        self.assertEqual(json.loads(created)["version"], "1")
        self.assertEqual(
            self.call("platform", "CreateSecret", name="KEY", value="v1", request_id="r1"), created
        )
        resolved = json.loads(self.call("executor", "ResolveSecrets", credentials=credentials))
        self.assertEqual(resolved["secrets"]["KEY"]["value"], "v1")
        self.assertIn("STRIPE", self.call("integration", "CreateSecret", name="STRIPE", value="v",
                                          owner={"integration": "stripe", "connection_id": "1"}))
        listed = self.call("operator", "ListSecrets", show_system_managed=True)
        self.assertEqual(len(json.loads(listed)["secrets"]), 2)
        self.assertIn("NOT_GRANTED", self.call("platform", "ResolveSecrets",
                                               credentials=credentials))
        self.assertIn("NOT_GRANTED", self.call("executor", "ListSecrets"))
        self.assertIn("NOT_GRANTED", self.call("operator", "DeleteSecret", name="KEY"))
        self.assertNotIn("ERROR", self.call("platform", "DeleteSecret", name="KEY"))

        self.process.send_signal(signal.SIGTERM)
        self.assertEqual(self.process.wait(30), 0)
        # Standard output holds the audit stream and nothing else.
        lines = [json.loads(line) for line in self.audit.read_text().splitlines()]
        self.assertIn(("resolve", "ok"), {(line["action"], line["outcome"]) for line in lines})


if __name__ == "__main__":
    unittest.main()
