"""What deploy/ holds is well formed, and as locked down as it says."""

import re
import shutil
import tempfile
import unittest
from pathlib import Path

import kubernetes_validate
import yaml

from project import DEPLOY, ROOT, run

KUBERNETES = DEPLOY / "kubernetes"
COMPOSE = DEPLOY / "compose.yaml"
UNIT = DEPLOY / "systemd/workflow-secrets.service"
# The oldest release that is meant to work, and a current one.
KUBERNETES_VERSIONS = ("1.30", "1.37")


def load(path):
    return list(yaml.safe_load_all(path.read_text()))


def resources():
    """Every Kubernetes resource, by kind."""
    kustomization = load(KUBERNETES / "kustomization.yaml")[0]
    found = [doc for name in kustomization["resources"] for doc in load(KUBERNETES / name)]
    return {doc["kind"]: doc for doc in found}


class Files(unittest.TestCase):
    def test_yaml_is_clean(self):
        rules = "{extends: default, rules: {line-length: {max: 140}, document-start: disable, " \
            "braces: {max-spaces-inside: 0}, comments-indentation: disable}}"
        done = run("yamllint", "--strict", "--config-data", rules, DEPLOY)
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_dockerfile_passes_hadolint(self):
        done = run("hadolint", DEPLOY / "Dockerfile")
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_the_image_is_small_and_without_root(self):
        stages = re.split(r"(?m)^FROM ", (DEPLOY / "Dockerfile").read_text())[1:]
        final = stages[-1]
        self.assertTrue(final.startswith("gcr.io/distroless/"), final)
        self.assertIn("USER 65532:65532", final)
        self.assertNotRegex(final, r"(?m)^(RUN|ADD) ")
        for stage in stages:
            image = stage.split()[0]
            self.assertRegex(image, r":[\w.-]+$")
            self.assertFalse(image.endswith(":latest"))

    def test_the_image_is_built_from_what_is_sent_for_it(self):
        """Cargo takes the manifest in a directory that has only these files."""
        rules = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        sent = [ROOT / rule[1:] for rule in rules if rule.startswith("!")]
        with tempfile.TemporaryDirectory() as context:
            for path in filter(Path.exists, sent):
                to = Path(context) / path.relative_to(ROOT)
                to.parent.mkdir(exist_ok=True)
                copy = shutil.copytree if path.is_dir() else shutil.copy
                copy(path, to)
            # Builds nothing, but looks at all targets first.
            done = run("cargo", "build", "--locked", "--bin", "nothing", cwd=context)
        self.assertIn("no bin target named `nothing`", done.stdout)

    def test_shell_scripts_pass_shellcheck(self):
        scripts = (ROOT / "tests/run.sh", ROOT / ".ci/run", DEPLOY / "dev-certs.sh")
        done = run("shellcheck", *scripts)
        self.assertEqual(done.returncode, 0, done.stdout)


class Compose(unittest.TestCase):
    def setUp(self):
        (self.compose,) = load(COMPOSE)

    def test_it_fits_the_compose_specification(self):
        done = run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_what_it_names_exists(self):
        compose = self.compose
        for config in compose["configs"].values():
            self.assertTrue((DEPLOY / config["file"]).is_file(), config)
        for name, service in compose["services"].items():
            for config in service.get("configs", []):
                self.assertIn(config["source"], compose["configs"], name)
            for volume in service.get("volumes", []):
                self.assertIn(volume.split(":")[0], compose["volumes"], name)
            for network in service.get("networks", []):
                self.assertIn(network, compose["networks"], name)
            for other in service.get("depends_on", {}):
                self.assertIn(other, compose["services"], name)
            if "build" in service:
                build = service["build"]
                self.assertEqual((DEPLOY / build["context"]).resolve(), ROOT)
                self.assertTrue((ROOT / build["dockerfile"]).is_file())

    def test_every_container_is_locked_down(self):
        for name, service in self.compose["services"].items():
            self.assertTrue(service["read_only"], name)
            self.assertEqual(service["cap_drop"], ["ALL"], name)
            self.assertIn("no-new-privileges:true", service["security_opt"], name)
            for port in service.get("ports", []):
                self.assertTrue(port.startswith("127.0.0.1:"), name)
        service = self.compose["services"]["workflow-secrets"]
        self.assertEqual(service["user"], "65532:65532")
        self.assertEqual(service["ulimits"], {"core": 0, "memlock": -1})


class Kubernetes(unittest.TestCase):
    def test_every_file_fits_its_schema(self):
        for version in KUBERNETES_VERSIONS:
            for resource in resources().values():
                kubernetes_validate.validate(resource, version, strict=True)

    def test_every_file_is_in_the_kustomization(self):
        kustomization = load(KUBERNETES / "kustomization.yaml")[0]
        there = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}
        self.assertEqual(set(kustomization["resources"]), there)
        for generator in kustomization["configMapGenerator"]:
            for name in generator["files"]:
                self.assertTrue((KUBERNETES / name).is_file(), name)

    def test_the_pod_meets_the_restricted_standard(self):
        pod = resources()["Deployment"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        self.assertTrue(pod["securityContext"]["runAsNonRoot"])
        self.assertEqual(pod["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
        self.assertFalse(pod["automountServiceAccountToken"])
        self.assertEqual(
            container["securityContext"],
            {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
        )

    def test_the_pod_gets_no_swap(self):
        """A container that requests all the memory it may use has none (LimitedSwap)."""
        pod = resources()["Deployment"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        memory = container["resources"]
        self.assertEqual(memory["requests"]["memory"], memory["limits"]["memory"])
        # Nothing is written to a disk of the node: Secrets lie in memory.
        for volume in pod["volumes"]:
            self.assertTrue({"secret", "configMap"} & set(volume), volume)

    def test_the_pod_has_time_to_finish(self):
        pod = resources()["Deployment"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        env = {e["name"]: e["value"] for e in container["env"]}

        def seconds(name):
            return int(env[f"WORKFLOW_SECRETS_{name}"].removesuffix("s"))

        self.assertGreater(pod["terminationGracePeriodSeconds"], seconds("SHUTDOWN_GRACE"))
        self.assertGreater(seconds("SHUTDOWN_GRACE"), seconds("DRAIN_DELAY"))

    def test_paths_and_labels_meet(self):
        found = resources()
        deployment = found["Deployment"]["spec"]
        labels = deployment["template"]["metadata"]["labels"]
        self.assertEqual(deployment["selector"]["matchLabels"], labels)
        self.assertEqual(found["Service"]["spec"]["selector"], labels)
        self.assertEqual(found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"], labels)
        self.assertEqual(found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"], labels)
        pod = deployment["template"]["spec"]
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        self.assertEqual(set(mounts.values()), {volume["name"] for volume in pod["volumes"]})
        for entry in container["env"]:
            if entry["value"].startswith("/"):
                self.assertIn(entry["value"].rpartition("/")[0], mounts, entry["name"])

    def test_prometheus_finds_and_reaches_the_admin_port(self):
        found = resources()
        template = found["Deployment"]["spec"]["template"]
        (container,) = template["spec"]["containers"]
        env = {e["name"]: e["value"] for e in container["env"]}
        port = int(env["WORKFLOW_SECRETS_ADMIN_LISTEN"].rpartition(":")[2])
        ports = {p["name"]: p["containerPort"] for p in container["ports"]}
        self.assertEqual(ports["admin"], port)
        annotations = template["metadata"]["annotations"]
        self.assertEqual(annotations["prometheus.io/port"], str(port))
        self.assertEqual(annotations["prometheus.io/path"], "/metrics")
        clients, monitoring = found["NetworkPolicy"]["spec"]["ingress"]
        self.assertEqual([p["port"] for p in clients["ports"]], [ports["grpc"]])
        self.assertEqual([p["port"] for p in monitoring["ports"]], [port])
        # Clients of the API reach it by a service; nobody needs one for this.
        self.assertNotIn("admin", [p["name"] for p in found["Service"]["spec"]["ports"]])

    def test_only_readiness_depends_on_redis_and_the_kms(self):
        (container,) = resources()["Deployment"]["spec"]["template"]["spec"]["containers"]
        service = ["--service", "workflowsecrets.v1.SecretsService"]
        commands = {
            probe: container[probe]["exec"]["command"]
            for probe in ("startupProbe", "livenessProbe", "readinessProbe")
        }
        self.assertEqual(commands["readinessProbe"][-2:], service)
        for probe in ("startupProbe", "livenessProbe"):
            self.assertEqual(commands[probe], commands["readinessProbe"][:-2])


class Systemd(unittest.TestCase):
    def setUp(self):
        self.settings = {}
        for line in UNIT.read_text().splitlines():
            if "=" in line and not line.startswith("#"):
                name, _, value = line.partition("=")
                self.settings.setdefault(name, []).append(value)

    def assert_set(self, **expected):
        for name, value in expected.items():
            self.assertEqual(self.settings.get(name), [value], name)

    def test_memory_stays_in_memory(self):
        self.assert_set(LimitCORE="0", LimitMEMLOCK="infinity", MemorySwapMax="0", UMask="0077")
        self.assertIn("WORKFLOW_SECRETS_REQUIRE_LOCKED_MEMORY=true", self.settings["Environment"])
        # Or mlockall fails.
        allowed, forbidden = self.settings["SystemCallFilter"]
        self.assertEqual(allowed, "@system-service")
        self.assertNotIn("@memlock", forbidden)

    def test_it_is_locked_down(self):
        self.assert_set(
            User="workflow-secrets",
            CapabilityBoundingSet="",
            AmbientCapabilities="",
            ProtectSystem="strict",
            ProtectProc="invisible",
            ProcSubset="pid",
            DevicePolicy="closed",
            KeyringMode="private",
            SystemCallArchitectures="native",
        )
        for name in (
            "LockPersonality", "MemoryDenyWriteExecute", "NoNewPrivileges", "PrivateDevices",
            "PrivateTmp", "ProtectClock", "ProtectControlGroups", "ProtectHome",
            "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules",
            "ProtectKernelTunables", "RemoveIPC", "RestrictNamespaces", "RestrictRealtime",
            "RestrictSUIDSGID",
        ):
            self.assertEqual(self.settings.get(name), ["yes"], name)

    def test_it_has_time_to_finish_and_no_copy_of_what_is_read_again(self):
        env = dict(
            line.split("=", 1)
            for line in UNIT.with_suffix(".env").read_text().splitlines()
            if line and not line.startswith("#")
        )
        (stop,), grace = self.settings["TimeoutStopSec"], env["WORKFLOW_SECRETS_SHUTDOWN_GRACE"]
        self.assertGreater(int(stop.removesuffix("s")), int(grace.removesuffix("s")))
        (credential,) = self.settings["LoadCredential"]
        name, path = credential.split(":")
        self.assertEqual(path, f"/etc/workflow-secrets/{name}")
        self.assertIn(
            f"WORKFLOW_SECRETS_REDIS_PASSWORD_FILE=%d/{name}", self.settings["Environment"]
        )
        readme = (DEPLOY / "README.md").read_text()
        for value in env.values():
            if value.startswith("/etc/"):
                self.assertIn(f"`{value.rpartition('/')[2]}`", readme)
        (logs,) = self.settings["LogsDirectory"]
        self.assertTrue(env["WORKFLOW_SECRETS_AUDIT"].startswith(f"/var/log/{logs}/"))

    @unittest.skipUnless(shutil.which("systemd-analyze"), "no systemd here")
    def test_systemd_finds_it_tight(self):
        done = run("systemd-analyze", "security", "--offline=true", "--threshold=20", UNIT)
        self.assertEqual(done.returncode, 0, done.stdout)


if __name__ == "__main__":
    unittest.main()
