"""README and deploy/ speak of the settings that the program has, and of all."""

import os
import re
import tempfile
import unittest
from pathlib import Path

import yaml

from project import DEPLOY, ROOT, run

# Shown by clap for every command.
COMMON = {"--help", "--version"}


EXAMPLES = (ROOT / "examples/python/run_node.py", ROOT / "examples/node/run-node.mjs")
BINARY = os.environ.get("WFS_BINARY", ROOT / "target/debug/workflow-secrets")


def help_of(command):
    done = run(BINARY, *command.split(), "--help")
    assert done.returncode == 0, done.stdout
    return done.stdout


def flags(text):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) - COMMON


def defined(command):
    """The flags that a command has: those that begin a line of its help."""
    lines = re.findall(r"(?m)^\s+(?:-\w, )?(--[a-z][a-z-]*)", help_of(command))
    return set(lines) - COMMON


def variables(text):
    return set(re.findall(r"\bWORKFLOW_SECRETS_[A-Z_]+\b", text))


KEYS = ("describe", "rotate", "reencrypt", "rewrap", "shred")
COMMANDS = ("serve", "dev", "probe", "import", *(f"keys {command}" for command in KEYS))


def table(title):
    """A table of the README: its text, and the first two cells of each row."""
    (text,) = re.findall(
        rf"(?ms)^\| {re.escape(title)} \|.*?\n\n", (ROOT / "README.md").read_text()
    )
    return text, re.findall(r"(?m)^\| (.*?) \| (.*?) \|", text)


class Settings(unittest.TestCase):
    def test_the_readme_has_every_flag_of_each_command_and_no_other(self):
        for command in ("serve", "dev", "probe"):
            text, rows = table(f"Flag of `{command}`")
            named = {flag for row, _ in rows for flag in flags(row)}
            self.assertEqual(named, defined(command))
            if command != "serve":
                self.assertEqual(variables(text), variables(help_of(command)))

    def test_the_readme_has_every_flag_of_the_clients_and_no_other(self):
        _, rows = table("Flag of `import` and `keys`")
        shared = {flag for row, _ in rows for flag in flags(row)}
        self.assertLessEqual({"--address", "--ca", "--server-name"}, shared & defined("probe"))
        _, rows = table("Flag of `import`")
        named = {flag for row, _ in rows for flag in flags(row)}
        self.assertEqual(named | shared, defined("import"))
        self.assertEqual(named & shared, set())
        _, rows = table("Flag of `keys`")
        for command in KEYS:
            named = {flag for row, of in rows if f"`{command}`" in of for flag in flags(row)}
            self.assertEqual(named | shared, defined(f"keys {command}"))
            self.assertEqual(variables(help_of(f"keys {command}")), set())

    def test_help_and_readme_tell_the_same_exit_codes(self):
        readme = " ".join((ROOT / "README.md").read_text().split())
        for command in ("import", "keys"):
            told = re.search(r"(?s)Exit codes: (.*?)\n\n", help_of(command))[1]
            codes = set(re.findall(r"\b\d+\b", told)) - {"0"}
            (row,) = re.findall(rf"\| `{command}` \| (.*?) \|", readme)
            self.assertEqual(set(re.findall(r"\b\d+\b", row)) - {"0"}, codes)

    def test_help_and_readme_tell_the_same_of_status_69(self):
        told = (
            "the store, KMS client or audit stream refused or cannot be reached at start, "
            "or the address is taken"
        )
        for text in ((ROOT / "README.md").read_text(), run(BINARY, "--help").stdout):
            self.assertIn(told, " ".join(text.split()))

    def test_the_readme_names_no_flag_that_is_not_there(self):
        readme = (ROOT / "README.md").read_text()
        of_other_programs = {
            *("--tools", "--update", "--prefix"),
            # redis-cli, cargo, the soak
            *("--tls", "--cacert", "--bench", "--test", "--release", "--seed", "--duration"),
        }
        known = set.union(of_other_programs, *map(defined, COMMANDS))
        known |= flags(EXAMPLES[0].read_text())
        self.assertEqual(flags(readme) - known, set())

    def test_the_examples_are_used_in_the_same_way(self):
        described = [
            re.search(r"(?s)--address.*opened again\.\n", path.read_text())[0] for path in EXAMPLES
        ]
        words = [re.sub(r"(?m)^ \*|\\", "", text).split() for text in described]
        self.assertEqual(*words)

    def test_each_flag_of_serve_has_its_variable(self):
        expected = {
            "WORKFLOW_SECRETS_" + flag.removeprefix("--").replace("-", "_").upper()
            for flag in defined("serve")
        }
        self.assertEqual(variables(help_of("serve")), expected)

    def test_deploy_sets_what_there_is(self):
        there = variables(help_of("serve"))
        for path in (
            DEPLOY / "compose.yaml",
            DEPLOY / "kubernetes/deployment.yaml",
            DEPLOY / "systemd/workflow-secrets.env",
            DEPLOY / "systemd/workflow-secrets.service",
        ):
            used = variables(path.read_text())
            self.assertTrue(used)
            self.assertEqual(used - there, set(), path)

    def test_deploy_probes_with_flags_that_are_there(self):
        deployment = yaml.safe_load((DEPLOY / "kubernetes/deployment.yaml").read_text())
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
        commands = [compose["services"]["workflow-secrets"]["healthcheck"]["test"]] + [
            container[probe]["exec"]["command"]
            for probe in ("startupProbe", "livenessProbe", "readinessProbe")
        ]
        for command in commands:
            self.assertEqual(flags(" ".join(command)) - defined("probe"), set())

    def test_the_program_takes_the_certificates_and_policies_shown(self):
        """One wrong setting ends it before it starts: that is all it may name."""
        (example,) = re.findall(r"(?ms)^```toml\n(.*?)^```", (ROOT / "README.md").read_text())
        with tempfile.TemporaryDirectory(prefix="wfs-settings-") as directory:
            certs = Path(directory) / "certs"
            self.assertEqual(run(DEPLOY / "dev-certs.sh", certs).returncode, 0)
            readme = Path(directory) / "policy.toml"
            readme.write_text(example)
            for policy in (readme, *DEPLOY.glob("*/policy.toml")):
                done = run(
                    BINARY, "serve", "--environment", "test", "--policy", policy,
                    "--tls-cert", certs / "server.crt", "--tls-key", certs / "server.key",
                    "--tls-client-ca", certs / "ca.crt", "--store", "redis://127.0.0.1:1",
                    "--kms-key", "alias/test", "--kms-region", "eu-west-1",
                    "--log-format", "wrong",
                )
                self.assertEqual(done.returncode, 64, done.stdout)
                self.assertIn("--log-format", done.stdout)
                for named in ("--policy", "policy.toml", str(certs), "--store", "--kms-key"):
                    self.assertNotIn(named, done.stdout)


if __name__ == "__main__":
    unittest.main()
