"""The AWS policies grant the service its calls, in its context only."""

import re
import unittest
import warnings

from project import DEPLOY, ROOT, read_json

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import parliament

KEY_POLICY = DEPLOY / "aws/kms-key-policy.json"
IAM_POLICY = DEPLOY / "aws/iam-policy.json"
TRUST_POLICY = DEPLOY / "aws/trust-policy.json"

CONTEXT = {
    "service": "workflow-secrets",
    "environment": "production",
    "workspace": "ws_1",
    "data_key": "0190b1d2-7c3e-7000-8000-000000000000",
}


def statements(path):
    return {s["Sid"]: s for s in read_json(path)["Statement"]}


def allows(condition, context):
    """Evaluates the operators these policies use, as IAM documents them."""
    prefix = "kms:EncryptionContext:"

    def value(key):
        if key == "kms:EncryptionContextKeys":
            return sorted(context) or None
        assert key.startswith(prefix), key
        return context.get(key.removeprefix(prefix))

    checks = {
        "StringEquals": lambda key, want: value(key) == want,
        "Null": lambda key, want: (value(key) is None) == (want == "true"),
        # True also for a key that is absent.
        "ForAllValues:StringEquals": lambda key, want: set(value(key) or []) <= set(want),
    }
    return all(
        checks[operator](key, want)
        for operator, keys in condition.items()
        for key, want in keys.items()
    )


class Policies(unittest.TestCase):
    def test_the_service_may_make_the_calls_it_makes_and_no_other(self):
        source = "".join(path.read_text() for path in (ROOT / "src/kms").rglob("*.rs"))
        calls = re.findall(r"self\s*\.client\s*\.(\w+)\(\)\s*\.(?:source_)?key_id\(", source)
        actions = {"kms:" + call.title().replace("_", "") for call in calls}
        # One call, two permissions: on the key it comes from, and on its new one.
        self.assertIn("kms:ReEncrypt", actions)
        actions = sorted(actions - {"kms:ReEncrypt"} | {"kms:ReEncryptFrom", "kms:ReEncryptTo"})
        self.assertEqual(
            actions,
            [
                "kms:Decrypt",
                "kms:GenerateDataKeyWithoutPlaintext",
                "kms:ReEncryptFrom",
                "kms:ReEncryptTo",
            ],
        )
        for path in (KEY_POLICY, IAM_POLICY):
            use = statements(path)["WrapAndUnwrapDataKeysInContext"]
            self.assertEqual(sorted(use["Action"]), actions)
            self.assertEqual(use["Effect"], "Allow")
        resource = statements(IAM_POLICY)["WrapAndUnwrapDataKeysInContext"]["Resource"]
        self.assertRegex(resource, r"^arn:aws:kms:[a-z0-9-]+:\d{12}:key/[0-9a-f-]{36}$")

    def test_only_the_full_context_is_allowed(self):
        for path in (KEY_POLICY, IAM_POLICY):
            condition = statements(path)["WrapAndUnwrapDataKeysInContext"]["Condition"]
            self.assertTrue(allows(condition, CONTEXT))
            self.assertFalse(allows(condition, {}))
            self.assertFalse(allows(condition, CONTEXT | {"purpose": "x"}))
            self.assertFalse(allows(condition, CONTEXT | {"environment": "staging"}))
            self.assertFalse(allows(condition, CONTEXT | {"service": "other"}))
            for missing in CONTEXT:
                rest = {k: v for k, v in CONTEXT.items() if k != missing}
                self.assertFalse(allows(condition, rest), missing)

    def test_the_context_is_the_one_the_service_sends(self):
        source = (ROOT / "src/kms/mod.rs").read_text()
        pairs = source[source.index("fn pairs") : source.index("/// Why a KMS call failed")]
        self.assertEqual(sorted(re.findall(r'\("(\w+)",', pairs)), sorted(CONTEXT))
        self.assertIn(f'SERVICE: &\'static str = "{CONTEXT["service"]}"', source)

    def test_administrators_cannot_use_the_key_or_lend_it(self):
        administer = statements(KEY_POLICY)["AdministerWithoutUsingTheKey"]
        for action in administer["Action"]:
            self.assertNotRegex(
                action, r"\*|Decrypt|Encrypt|GenerateDataKey|GenerateMac|Sign|Derive|CreateGrant"
            )

    def test_nothing_is_wild(self):
        for path in (KEY_POLICY, IAM_POLICY, TRUST_POLICY):
            for sid, statement in statements(path).items():
                actions = statement["Action"]
                actions = [actions] if isinstance(actions, str) else actions
                self.assertFalse([a for a in actions if "*" in a], sid)
                self.assertNotIn("*", str(statement.get("Principal", "")), sid)
                self.assertNotIn("NotAction", statement)
                self.assertNotIn("NotPrincipal", statement)

    def test_only_the_service_account_may_assume_the_role(self):
        (trust,) = statements(TRUST_POLICY).values()
        conditions = {k.rpartition(":")[2]: v for k, v in trust["Condition"]["StringEquals"].items()}
        self.assertEqual(
            conditions,
            {
                "aud": "sts.amazonaws.com",
                "sub": "system:serviceaccount:workflow-secrets:workflow-secrets",
            },
        )

    def test_parliament_knows_every_action_and_condition(self):
        # A key policy's resource is always the key itself, written *; that of
        # an IAM policy must be named.
        expected = {KEY_POLICY: {"RESOURCE_STAR"}, IAM_POLICY: set()}
        for path, accepted in expected.items():
            findings = parliament.analyze_policy_string(path.read_text()).findings
            self.assertEqual({f.issue for f in findings} - accepted, set(), findings)


if __name__ == "__main__":
    unittest.main()
