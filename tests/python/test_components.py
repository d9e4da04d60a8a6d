"""What may be added to deploy/kubernetes: cert-manager, Prometheus' operator; and the autoscaler.

Of these custom resources no package brings a schema that refuses unknown fields, so those of
cert-manager 1.x, approver-policy 0.x and Prometheus' operator 0.x that are used here stand below.
"""

import tomllib
import unittest

import jsonschema
import kubernetes_validate
import yaml

from project import DEPLOY
from promql import RULE_FILES
from prometheus_rules import resource
from test_deploy import KUBERNETES, KUBERNETES_VERSIONS, load, resources

CERT_MANAGER = KUBERNETES / "cert-manager"
MONITORING = KUBERNETES / "monitoring"
TEXT, FLAG = {"type": "string", "minLength": 1}, {"type": "boolean"}
TEXTS = {"type": "array", "items": TEXT, "minItems": 1}
NUMBER = {"type": "integer"}
DURATION = {"type": "string", "pattern": r"^(\d+h)?(\d+m)?(\d+s)?$", "minLength": 2}
USAGES = {
    "type": "array",
    "items": {"enum": ["server auth", "client auth", "digital signature", "cert sign", "crl sign"]},
}


def shape(needed=(), /, **properties):
    return {
        "type": "object", "additionalProperties": False, "properties": properties,
        "required": list(needed),
    }


def listed(of):
    return {"type": "array", "items": of, "minItems": 1}


def custom(version, spec):
    metadata = shape(["name"], name=TEXT, namespace=TEXT, labels={"type": "object"})
    return shape(
        ["apiVersion", "kind", "metadata", "spec"], apiVersion={"const": version}, kind=TEXT,
        metadata=metadata, spec=spec,
    )


ISSUER_REF = shape(
    ["name", "kind", "group"], name=TEXT, kind={"enum": ["Issuer", "ClusterIssuer"]},
    group={"const": "cert-manager.io"},
)
LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
RULE = {
    "oneOf": [
        shape(["record", "expr"], record=TEXT, expr=TEXT, labels=LABELS),
        shape(
            ["alert", "expr"], alert=TEXT, expr=TEXT, labels=LABELS, annotations=LABELS,
            **{"for": {"type": "string", "pattern": r"^\d+[smh]$"}},
        ),
    ]
}
SCHEMAS = {
    "Certificate": custom("cert-manager.io/v1", shape(
        ["secretName", "issuerRef", "usages", "privateKey", "duration", "renewBefore"],
        secretName=TEXT, issuerRef=ISSUER_REF, dnsNames=TEXTS, uris=TEXTS, isCA=FLAG,
        commonName=TEXT, usages=USAGES, duration=DURATION, renewBefore=DURATION,
        privateKey=shape(
            ["algorithm", "size", "rotationPolicy"],
            algorithm={"const": "ECDSA"}, size={"enum": [256, 384]},
            rotationPolicy={"enum": ["Never", "Always"]},
        ),
    )),
    "ClusterIssuer": custom("cert-manager.io/v1", {
        "oneOf": [
            shape(["selfSigned"], selfSigned=shape()),
            shape(["ca"], ca=shape(["secretName"], secretName=TEXT)),
        ]
    }),
    "CertificateRequestPolicy": custom("policy.cert-manager.io/v1alpha1", shape(
        ["allowed", "selector"],
        allowed=shape(
            ["usages"], usages=USAGES, isCA=FLAG,
            commonName=shape(["value"], value=TEXT, required=FLAG),
            dnsNames=shape(["values"], values=TEXTS, required=FLAG),
            uris=shape(["values"], values=TEXTS, required=FLAG),
        ),
        constraints=shape(maxDuration=DURATION),
        selector=shape(
            ["issuerRef", "namespace"], issuerRef=ISSUER_REF,
            namespace=shape(["matchNames"], matchNames=TEXTS),
        ),
    )),
    "PodMonitor": custom("monitoring.coreos.com/v1", shape(
        ["selector", "podMetricsEndpoints"],
        selector=shape(["matchLabels"], matchLabels=LABELS),
        podMetricsEndpoints=listed(shape(["port"], port=TEXT, path=TEXT, interval=TEXT)),
    )),
    "PrometheusRule": custom("monitoring.coreos.com/v1", shape(
        ["groups"], groups=listed(shape(["name", "rules"], name=TEXT, rules=listed(RULE))),
    )),
}


def hours(duration):
    return int(duration.removesuffix("h"))


def all_in(directory):
    """The resources that a kustomization names, each file of the directory among them."""
    (kustomization,) = load(directory / "kustomization.yaml")
    there = {path.name for path in directory.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == there, directory
    return [doc for name in kustomization["resources"] for doc in load(directory / name)]


def of_kind(kind, docs):
    return [doc for doc in docs if doc["kind"] == kind]


class Components(unittest.TestCase):
    def setUp(self):
        self.server = all_in(CERT_MANAGER)
        self.authority = all_in(CERT_MANAGER / "authority")
        self.clients = all_in(CERT_MANAGER / "clients")
        self.monitoring = all_in(MONITORING)

    def test_every_resource_fits_its_schema(self):
        seen = set()
        for doc in self.server + self.authority + self.clients + self.monitoring:
            kind = doc["kind"]
            seen.add(kind)
            with self.subTest(kind=kind, name=doc["metadata"]["name"]):
                if kind in SCHEMAS:
                    jsonschema.validate(doc, SCHEMAS[kind])
                else:
                    for version in KUBERNETES_VERSIONS:
                        kubernetes_validate.validate(doc, version, strict=True)
        self.assertLessEqual(set(SCHEMAS), seen)

    def test_components_can_be_named(self):
        text = (KUBERNETES / "kustomization.yaml").read_text()
        for directory in (CERT_MANAGER, MONITORING):
            (kustomization,) = load(directory / "kustomization.yaml")
            self.assertEqual(kustomization["kind"], "Component")
            self.assertIn(f"#   - {directory.name}\n", text)

    def test_the_server_has_the_names_it_is_called_by(self):
        (certificate,) = self.server
        spec = certificate["spec"]
        pod = resources()["Deployment"]["spec"]["template"]["spec"]
        (volume,) = [v for v in pod["volumes"] if v["name"] == "tls"]
        self.assertEqual(volume["secret"]["secretName"], spec["secretName"])
        probe = pod["containers"][0]["readinessProbe"]["exec"]["command"]
        self.assertIn(probe[probe.index("--server-name") + 1], spec["dnsNames"])
        self.assertIn("server auth", spec["usages"])
        self.assertNotIn("client auth", spec["usages"])
        # The alerts of deploy/prometheus come at 14 and 3 days.
        self.assertGreater(hours(spec["renewBefore"]), 14 * 24)

    def test_each_caller_of_the_policy_has_a_certificate_of_its_own(self):
        policy = tomllib.loads((KUBERNETES / "policy.toml").read_text())
        callers = [grant["caller"] for grant in policy["grant"]]
        found = {}
        for doc in of_kind("Certificate", self.clients):
            (uri,) = doc["spec"]["uris"]
            found[uri] = doc["metadata"]["namespace"]
            self.assertEqual(doc["spec"]["usages"], ["client auth", "digital signature"])
            self.assertNotIn("dnsNames", doc["spec"])
        self.assertEqual(sorted(found), sorted(callers))
        for uri, namespace in found.items():
            self.assertEqual(uri.split("/ns/")[1].split("/")[0], namespace)

    def test_nobody_gets_the_name_of_another(self):
        docs = self.authority + self.clients
        policies = of_kind("CertificateRequestPolicy", docs)
        self.assertEqual(len({p["metadata"]["name"] for p in policies}), len(policies))
        for policy in policies:
            allowed, (namespace,) = policy["spec"]["allowed"], policy["spec"]["selector"]["namespace"]["matchNames"]
            with self.subTest(policy["metadata"]["name"]):
                for uri in allowed.get("uris", {}).get("values", []):
                    self.assertEqual(uri, f"spiffe://example.org/ns/{namespace}/sa/*")
                    self.assertEqual(allowed["usages"], ["client auth", "digital signature"])
                self.assertEqual("isCA" in allowed, namespace == "cert-manager")
        # Each certificate that stands here is allowed, and each policy may be used.
        for certificate in of_kind("Certificate", docs + self.server):
            spec = certificate["spec"]
            namespace = certificate["metadata"].get("namespace", "workflow-secrets")
            fitting = [
                p for p in policies
                if p["spec"]["selector"]["namespace"]["matchNames"] == [namespace]
                and p["spec"]["selector"]["issuerRef"] == spec["issuerRef"]
                and set(spec["usages"]) <= set(p["spec"]["allowed"]["usages"])
                and set(spec.get("dnsNames", [])) == set(p["spec"]["allowed"].get("dnsNames", {}).get("values", []))
            ]
            self.assertEqual(len(fitting), 1, certificate["metadata"])
            longest = fitting[0]["spec"].get("constraints", {}).get("maxDuration", "87600h")
            self.assertLessEqual(hours(spec["duration"]), hours(longest))
        usable = {
            name for role in of_kind("ClusterRole", docs) for rule in role["rules"]
            for name in rule["resourceNames"]
        }
        self.assertEqual(usable, {p["metadata"]["name"] for p in policies})

    def test_the_operator_gets_the_same_rules(self):
        rules = {doc["metadata"]["name"]: doc for doc in of_kind("PrometheusRule", self.monitoring)}
        for path in RULE_FILES:
            groups = yaml.safe_load(path.read_text())["groups"]
            self.assertEqual(rules[f"workflow-secrets-{path.stem}"]["spec"]["groups"], groups)
            # So do the comments.
            self.assertEqual((MONITORING / path.name).read_text(), resource(path), "--update it")
        self.assertEqual(len(rules), len(RULE_FILES))

    def test_the_monitor_finds_the_admin_port(self):
        (monitor,) = of_kind("PodMonitor", self.monitoring)
        template = resources()["Deployment"]["spec"]["template"]
        self.assertEqual(monitor["spec"]["selector"]["matchLabels"], template["metadata"]["labels"])
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        self.assertIn(endpoint["port"], [p["name"] for p in template["spec"]["containers"][0]["ports"]])
        self.assertEqual(endpoint["path"], template["metadata"]["annotations"]["prometheus.io/path"])


class Autoscaling(unittest.TestCase):
    def setUp(self):
        found = resources()
        self.deployment = found["Deployment"]
        self.scaler = found["HorizontalPodAutoscaler"]["spec"]
        self.budget = found["PodDisruptionBudget"]["spec"]

    def test_it_owns_the_number_of_replicas(self):
        self.assertEqual(
            self.scaler["scaleTargetRef"],
            {
                "apiVersion": self.deployment["apiVersion"], "kind": "Deployment",
                "name": self.deployment["metadata"]["name"],
            },
        )
        self.assertNotIn("replicas", self.deployment["spec"])

    def test_a_drain_and_a_failure_leave_a_replica(self):
        self.assertGreater(self.scaler["minReplicas"] - self.budget["maxUnavailable"] - 1, 0)
        self.assertGreater(self.scaler["maxReplicas"], self.scaler["minReplicas"])
        self.assertEqual(self.deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"], 0)

    def test_cpu_can_be_told_and_may_go_above_the_request(self):
        (metric,) = self.scaler["metrics"]
        self.assertEqual(metric["resource"]["name"], "cpu")
        (container,) = self.deployment["spec"]["template"]["spec"]["containers"]
        self.assertIn("cpu", container["resources"]["requests"])
        self.assertNotIn("cpu", container["resources"]["limits"])

    def test_warm_replicas_go_slowly(self):
        down = self.scaler["behavior"]["scaleDown"]
        # Longer than a data key serves without a refresh.
        self.assertGreaterEqual(down["stabilizationWindowSeconds"], 900)
        self.assertEqual(down["policies"], [{"type": "Pods", "value": 1, "periodSeconds": 900}])


if __name__ == "__main__":
    unittest.main()
