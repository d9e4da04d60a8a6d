"""Runs what deploy/ brings for trying out: the certificates and Redis."""

import datetime
import tempfile
import unittest
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from compose import SERVICES, Redis, replaced
from project import DEPLOY, run

ROLES = ("executor", "platform", "integration", "operator")


def names(certificate, kind):
    extension = certificate.extensions.get_extension_for_oid(
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME
    )
    return extension.value.get_values_for_type(kind)


class DevCerts(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="wfs-certs-")
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "certs"

    def make(self, *hosts):
        done = run(DEPLOY / "dev-certs.sh", self.path, *hosts)
        self.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout

    def certificate(self, name):
        return x509.load_pem_x509_certificate((self.path / f"{name}.crt").read_bytes())

    def test_each_role_gets_exactly_its_spiffe_id(self):
        self.make("workflow-secrets")
        for role in ROLES:
            certificate = self.certificate(role)
            uris = names(certificate, x509.UniformResourceIdentifier)
            self.assertEqual(uris, [f"spiffe://dev.example/{role}"])
            self.assertEqual(names(certificate, x509.DNSName), [])
            usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
            self.assertEqual(list(usage.value), [ExtendedKeyUsageOID.CLIENT_AUTH])
            self.verify(role, "sslclient")

    def test_the_server_is_known_by_its_names(self):
        self.make("workflow-secrets")
        certificate = self.certificate("server")
        self.assertEqual(names(certificate, x509.DNSName), ["localhost", "workflow-secrets"])
        self.assertEqual([str(ip) for ip in names(certificate, x509.IPAddress)], ["127.0.0.1"])
        self.verify("server", "sslserver")
        lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        self.assertLessEqual(lifetime, datetime.timedelta(days=30))

    def test_keys_are_private_and_a_second_run_keeps_what_is_there(self):
        self.make()
        before = {path: path.read_bytes() for path in self.path.iterdir()}
        for path in before:
            self.assertEqual(path.stat().st_mode & 0o077, 0, path)
        self.assertEqual(self.make(), "")
        self.assertEqual({path: path.read_bytes() for path in self.path.iterdir()}, before)

    def test_a_new_authority_renews_all(self):
        self.make()
        (self.path / "ca.key").unlink()
        self.make()
        for name in ("server", *ROLES):
            self.verify(name, "any")

    def verify(self, name, purpose):
        done = run(
            "openssl", "verify", "-x509_strict", "-purpose", purpose,
            "-CAfile", self.path / "ca.crt", self.path / f"{name}.crt",
        )
        self.assertEqual(done.returncode, 0, done.stdout)


class ComposeRedis(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="wfs-redis-")
        self.addCleanup(directory.cleanup)
        self.redis = Redis(self, directory.name)
        self.command = self.redis.command

    def test_it_keeps_every_write_and_evicts_nothing(self):
        for name, value in {
            "maxmemory-policy": "noeviction",
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory": str(256 * 1024 * 1024),
        }.items():
            self.assertEqual(
                self.command("CONFIG", "GET", name, user="tester"), f"{name}\n{value}"
            )

    def test_the_user_may_do_what_the_service_does_and_no_more(self):
        script = "return redis.call('HSET', KEYS[1], 'm/A', 'x')"
        self.assertEqual(self.command("EVAL", script, "1", "workflow-secrets:{ws}:r"), "1")
        self.assertEqual(self.command("HMGET", "workflow-secrets:{ws}:r", "m/A"), "x")
        self.assertIn("NOPERM", self.command("HMGET", "other:{ws}:r", "m/A"))
        for command in (["FLUSHALL"], ["KEYS", "*"], ["MONITOR"], ["CONFIG", "SET", "dir", "/"],
                        ["DEL", "other:{ws}:r"], ["SHUTDOWN"], ["ACL", "LIST"],
                        ["SCRIPT", "FLUSH"]):
            self.assertIn("NOPERM", self.command(*command), command)

    def test_the_health_check_of_compose_tells(self):
        shell, check = SERVICES["redis"]["healthcheck"]["test"]
        self.assertEqual(shell, "CMD-SHELL")
        port = f"redis-cli -p {self.redis.port} "
        check = replaced(self.redis.local(check), "redis-cli ", port)
        self.assertEqual(run("sh", "-c", check).returncode, 0)
        self.redis.password_file.write_text("wrong")
        self.assertNotEqual(run("sh", "-c", check).returncode, 0)

    def test_nobody_else_gets_in(self):
        self.assertIn("NOAUTH", self.command("PING", user=None))


if __name__ == "__main__":
    unittest.main()
