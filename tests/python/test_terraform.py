"""deploy/terraform: true to the provider's schema, to deploy/aws and to the rights in Redis.

With `terraform` on the PATH, it validates and tests the module itself, with a stand-in for
the AWS provider that has the real one's schema (aws_provider.py). Without, what that needs is
skipped, and the rest below still holds.
"""

import json
import os
import re
import shutil
import sys
import tempfile
import unittest
from pathlib import Path

from project import DEPLOY, ROOT, read_json, run

MODULE = DEPLOY / "terraform"
EXAMPLE = MODULE / "example"
HERE = Path(__file__).resolve().parent
SCHEMA = read_json(HERE / "aws_schema.json")
TERRAFORM = shutil.which("terraform") or shutil.which("tofu")
# Of every resource, whatever its type.
META = {"count", "for_each", "lifecycle", "depends_on", "provider"}
REFERENCE = re.compile(r"\b(data\.)?(aws_\w+)\.\w+(?:\[(?:\d+|\*)\])?\.(\w+)")


def parsed(*paths):
    """HCL files as JSON, merged."""
    done = run("node", HERE / "hcl2json.cjs", *paths)
    assert done.returncode == 0, done.stdout
    merged = {}
    for document in json.loads(done.stdout):
        for section, content in document.items():
            if isinstance(content, dict):
                for name, inner in content.items():
                    merged.setdefault(section, {}).setdefault(name, {})
                    if isinstance(inner, dict):
                        assert not set(inner) & set(merged[section][name]), f"{section}.{name}"
                        merged[section][name] |= inner
                    else:
                        merged[section][name] = inner
            else:
                merged.setdefault(section, []).extend(content)
    return merged


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def faults(entries, body, place):
    """Arguments that the schema does not know, does not let be set, or demands."""
    found = []
    for name, value in body.items():
        entry = entries.get(name)
        if name in META:
            continue
        if entry is None:
            found.append(f"{place}.{name}: unknown")
        elif not entry["optional"] and not entry["required"]:
            found.append(f"{place}.{name}: read only")
        elif "block" in entry:
            for inner in value:
                found += faults(entry["block"], inner, f"{place}.{name}")
    needed = {name for name, entry in entries.items() if entry["required"]}
    return found + [f"{place}.{name}: missing" for name in sorted(needed - set(body))]


class Static(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.files = sorted(MODULE.glob("*.tf"))
        cls.module = parsed(*cls.files)

    def test_every_resource_fits_the_schema_of_the_provider(self):
        seen = 0
        for section in ("resource", "data"):
            for kind, named in self.module[section].items():
                for name, (body,) in named.items():
                    with self.subTest(f"{kind}.{name}"):
                        self.assertIn(kind, SCHEMA[section])
                        self.assertEqual(faults(SCHEMA[section][kind], body, f"{kind}.{name}"), [])
                        seen += 1
        self.assertGreater(seen, 15)

    def test_what_does_not_fit_is_found(self):
        key = SCHEMA["resource"]["aws_kms_key"]
        self.assertEqual(faults(key, {"enable_rotation": True}, "k"), ["k.enable_rotation: unknown"])
        self.assertEqual(faults(key, {"arn": "x"}, "k"), ["k.arn: read only"])
        group = SCHEMA["resource"]["aws_elasticache_parameter_group"]
        body = {"name": "n", "parameter": [{"name": "p"}]}
        self.assertEqual(faults(group, body, "g"), ["g.parameter.value: missing", "g.family: missing"])

    def test_references_are_to_what_exists(self):
        seen = 0
        for text in strings(self.module):
            for data, kind, attribute in REFERENCE.findall(text):
                seen += 1
                known = SCHEMA["data" if data else "resource"][kind]
                self.assertIn(attribute, known, f"{kind}.{attribute}")
        self.assertGreater(seen, 20)

    def test_the_schema_is_of_the_version_that_is_asked_for(self):
        version = SCHEMA["provider"].split()[1]
        minor = ".".join(version.split(".")[:2])
        for directory in (MODULE, EXAMPLE):
            texts = [path.read_text() for path in directory.glob("*.tf")]
            wanted = re.findall(r'version = "~> ([\d.]+)"', re.sub(" +", " ", "".join(texts)))
            self.assertEqual(wanted, [minor], directory)

    def test_what_it_replaces_stands_in_the_policies(self):
        text = (MODULE / "locals.tf").read_text()
        for name in ("kms-key-policy", "iam-policy", "trust-policy"):
            policy = (DEPLOY / f"aws/{name}.json").read_text()
            (call,) = re.findall(rf'(?s)replace\(\s*file\("\$\{{path.module\}}/../aws/{name}\.json"\),(.*?)\n  \)', text)
            for old in re.findall(r'(?m)^    "((?:[^"\\]|\\.)*)",', call):
                old = old.replace('\\"', '"')
                with self.subTest(policy=name, old=old):
                    self.assertIn(old, policy)
                    policy = policy.replace(old, "")
            # What is left is no name of the example.
            self.assertNotRegex(policy, r"111122223333|EXAMPLE|production|eu-west-1")

    def test_the_user_has_the_rights_of_redis_and_no_other(self):
        lines = (DEPLOY / "redis-rights.acl").read_text().splitlines()
        (rights,) = [line for line in lines if line and not line.startswith("#")]
        self.assertTrue(rights.startswith("resetkeys resetchannels -@all ~workflow-secrets:* +"))
        text = (MODULE / "locals.tf").read_text()
        self.assertIn('"resetkeys resetchannels -@all ~workflow-secrets:*"', text)
        (added,) = re.findall(r'"on \$\{local\.rights\} ([^"]*)"', text)
        comment = " ".join(line.removeprefix("# ") for line in lines if line.startswith("#"))
        self.assertIn(f"for a cluster {added}.", comment)

    def test_nothing_of_value_can_be_destroyed_by_a_plan(self):
        resources = self.module["resource"]
        for kind in ("aws_kms_key", "aws_elasticache_replication_group", "aws_memorydb_cluster"):
            for name, (body,) in resources[kind].items():
                self.assertIs(body["lifecycle"][0]["prevent_destroy"], True, f"{kind}.{name}")
        for (body,) in resources["aws_kms_key"].values():
            self.assertEqual((body["deletion_window_in_days"], body["enable_key_rotation"]), (30, True))

    def test_the_store_is_encrypted_and_keeps_what_it_has(self):
        for kind in ("elasticache", "memorydb"):
            (group,) = self.module["resource"][f"aws_{kind}_parameter_group"]["store"]
            self.assertIn({"name": "maxmemory-policy", "value": "noeviction"}, group["parameter"])
        (cache,) = self.module["resource"]["aws_elasticache_replication_group"]["store"]
        for name in (
            "transit_encryption_enabled", "at_rest_encryption_enabled", "multi_az_enabled",
            "automatic_failover_enabled",
        ):
            self.assertIs(cache[name], True, name)
        self.assertEqual(cache["kms_key_id"], "${aws_kms_key.at_rest.arn}")
        (cluster,) = self.module["resource"]["aws_memorydb_cluster"]["store"]
        self.assertEqual((cluster["tls_enabled"], cluster["kms_key_arn"]), (True, "${aws_kms_key.at_rest.arn}"))

    def test_settings_are_the_services(self):
        readme = (ROOT / "README.md").read_text()
        (settings,) = self.module["output"]["settings"]
        names = re.findall(r"WORKFLOW_SECRETS_(\w+)", str(settings["value"]))
        self.assertIn("STORE", names)
        for name in names:
            self.assertIn(f"`--{name.lower().replace('_', '-')}`", readme, name)

    def test_the_example_gives_what_is_needed(self):
        example = parsed(EXAMPLE / "main.tf")
        (given,) = example["module"]["workflow_secrets"]
        variables = self.module["variable"]
        needed = {name for name, (body,) in variables.items() if "default" not in body}
        self.assertLessEqual(needed, set(given))
        self.assertLessEqual(set(given) - {"source"}, set(variables))
        for name, (body,) in {**variables, **self.module["output"]}.items():
            self.assertTrue(body["description"], name)
        self.assertEqual(given["source"], "../")


@unittest.skipUnless(TERRAFORM, "NO terraform OR tofu HERE: the module is not validated by it")
class Validated(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="wfs-terraform-")
        self.addCleanup(directory.cleanup)
        self.place = Path(directory.name)
        provider = self.place / "provider"
        provider.mkdir()
        script = provider / "terraform-provider-aws"
        script.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "aws_provider.py"}" 2>"{self.place}/log"\n'
        )
        script.chmod(0o755)
        (self.place / "config").write_text(
            f'provider_installation {{\n  dev_overrides {{\n    "hashicorp/aws" = "{provider}"\n  }}\n}}\n'
        )
        # With what it reads beside it.
        shutil.copytree(DEPLOY / "aws", self.place / "deploy/aws")
        shutil.copy(DEPLOY / "redis-rights.acl", self.place / "deploy")
        self.module = self.place / "deploy/terraform"
        shutil.copytree(MODULE, self.module, ignore=shutil.ignore_patterns(".terraform*"))

    def terraform(self, *arguments):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
        environment |= {"TF_CLI_CONFIG_FILE": str(self.place / "config"), "CHECKPOINT_DISABLE": "1"}
        return run(TERRAFORM, f"-chdir={self.module}", *arguments, env=environment)

    def test_it_is_formatted(self):
        done = self.terraform("fmt", "-check", "-recursive", "-diff")
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_it_is_valid_and_what_is_not_is_found(self):
        done = self.terraform("validate", "-no-color")
        self.assertEqual(done.returncode, 0, done.stdout)
        kms = self.module / "kms.tf"
        text = kms.read_text()
        for right, wrong, told in (
            ("rotation_period_in_days = 365", "rotation_days = 365", "Unsupported argument"),
            ("rotation_period_in_days = 365", 'rotation_period_in_days = "often"', "a number is required"),
            ("data_keys.key_id", "data_keys.id_of_key", "Unsupported attribute"),
        ):
            self.assertIn(right, text)
            kms.write_text(text.replace(right, wrong))
            done = self.terraform("validate", "-no-color")
            self.assertNotEqual(done.returncode, 0, wrong)
            self.assertIn(told, " ".join(done.stdout.split()))

    @unittest.skipUnless(TERRAFORM and TERRAFORM.endswith("terraform"), "mocks are Terraform's")
    def test_it_plans_what_it_should(self):
        done = self.terraform("test", "-no-color")
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertRegex(done.stdout, r"Success! \d+ passed, 0 failed")


if __name__ == "__main__":
    unittest.main()
