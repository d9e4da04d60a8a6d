"""The alert rules of deploy/prometheus: true to the metrics, tested, and each with a runbook."""

import re
import unittest

import yaml

from project import DEPLOY, ROOT, run
from promql import PROMTOOL, RULE_FILES, alerts, catalogue, faults, rules

RUNBOOKS = DEPLOY / "runbooks"
TESTS = sorted((DEPLOY / "prometheus/tests").glob("*.yaml"))
METRICS = catalogue()
# What a runbook answers, in this order.
SECTIONS = ["For callers", "Look", "Do", "Over when", "Do not"]


def kebab(alert):
    name = alert.removeprefix("WorkflowSecrets")
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


class Rules(unittest.TestCase):
    def test_promtool_takes_them(self):
        done = run(PROMTOOL, "check", "rules", *RULE_FILES)
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_each_fires_when_it_should_and_not_otherwise(self):
        done = run(PROMTOOL, "test", "rules", *TESTS, timeout=600)
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_each_is_tested_both_ways(self):
        fires, quiet = set(), set()
        for path in TESTS:
            for test in yaml.safe_load(path.read_text())["tests"]:
                for check in test["alert_rule_test"]:
                    (fires if check["exp_alerts"] else quiet).add(check["alertname"])
        names = {rule["alert"] for rule in alerts()}
        self.assertEqual((fires - names, quiet - names), (set(), set()))
        self.assertEqual((names - fires, names - quiet), (set(), set()))

    def test_they_refer_to_what_exists(self):
        recorded = [rule["record"] for rule in rules() if "record" in rule]
        for rule in rules():
            with self.subTest(rule.get("alert") or rule.get("record")):
                self.assertEqual(faults(rule["expr"], METRICS, recorded), [])

    def test_what_does_not_exist_is_found(self):
        for expression, fault in {
            "workflow_secrets_ready == 0": None,
            "sum by (namespace, le) (rate(workflow_secrets_kms_call_duration_seconds_bucket[5m]))": None,
            "workflow_secrets_up == 0": "metric workflow_secrets_up",
            "workflow_secrets_data_key_age_seconds > 1": "metric workflow_secrets_data_key_age_seconds",
            "workflow_secrets_ready_count > 1": "metric workflow_secrets_ready_count",
            'workflow_secrets_calls_total{reason="ok"}': "label workflow_secrets_calls_total.reason",
            'workflow_secrets_calls_total{outcome="STALE"}':
                "value workflow_secrets_calls_total.outcome: STALE",
            'workflow_secrets_calls_total{action=~"resolve|rendr"}':
                "value workflow_secrets_calls_total.action: resolve|rendr",
            'workflow_secrets_kms_call_duration_seconds_count{outcome="unavailable"}':
                "value workflow_secrets_kms_call_duration_seconds_count.outcome: unavailable",
            'workflow_secrets_store_call_duration_seconds_count{outcome="transient"}':
                "value workflow_secrets_store_call_duration_seconds_count.outcome: transient",
            "sum by (file) (workflow_secrets_ready)": "label file",
        }.items():
            found = faults(expression, METRICS)
            self.assertEqual(found, [fault] if fault else [], expression)

    def test_each_says_what_matters(self):
        self.assertGreater(len(alerts()), 20)
        for rule in alerts():
            with self.subTest(rule["alert"]):
                self.assertRegex(rule["alert"], r"^WorkflowSecrets[A-Z]\w+$")
                self.assertEqual(set(rule["labels"]), {"severity", "service"})
                self.assertIn(rule["labels"]["severity"], ("critical", "warning"))
                self.assertEqual(set(rule["annotations"]), {"summary", "description", "runbook"})


class Runbooks(unittest.TestCase):
    def test_each_alert_has_one_and_each_one_an_alert(self):
        for rule in alerts():
            self.assertEqual(
                rule["annotations"]["runbook"], f"deploy/runbooks/{kebab(rule['alert'])}.md"
            )
        there = {path.stem for path in RUNBOOKS.glob("*.md")} - {"README", "restore"}
        self.assertEqual(there, {kebab(rule["alert"]) for rule in alerts()})
        readme = (RUNBOOKS / "README.md").read_text()
        listed = re.findall(r"^\| `(\w+)` \| (critical|warning) \| \[[^\]]+\]\(([\w-]+)\.md\)", readme, re.M)
        self.assertEqual(
            listed,
            [(r["alert"], r["labels"]["severity"], kebab(r["alert"])) for r in alerts()],
        )

    def test_each_says_the_same_things_in_the_same_order(self):
        for rule in alerts():
            with self.subTest(rule["alert"]):
                text = (RUNBOOKS / f"{kebab(rule['alert'])}.md").read_text()
                self.assertTrue(text.startswith(f"# {rule['alert']}\n"))
                self.assertEqual(re.findall(r"(?m)^## (.*)$", text), SECTIONS)

    def test_their_queries_refer_to_what_exists(self):
        recorded = [rule["record"] for rule in rules() if "record" in rule]
        queries = 0
        for path in RUNBOOKS.glob("*.md"):
            for block in re.findall(r"(?ms)^ *```promql\n(.*?)^ *```", path.read_text()):
                for query in block.split("\n\n"):
                    queries += 1
                    with self.subTest(f"{path.name}: {query}"):
                        self.assertEqual(faults(query, METRICS, recorded), [])
        self.assertGreater(queries, 20)

    def test_their_links_and_settings_exist(self):
        readme = (ROOT / "README.md").read_text()
        for path in RUNBOOKS.glob("*.md"):
            text = path.read_text()
            for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
                self.assertTrue((path.parent / link).exists(), f"{path.name}: {link}")
            # Flags of this service; those of other programs stand in blocks of code.
            for flag in re.findall(r"`(--[a-z][a-z-]+)", re.sub(r"(?ms)^ *```.*?^ *```", "", text)):
                self.assertIn(f"`{flag}`", readme, path.name)

    def test_their_commands_can_be_run(self):
        methods = METRICS["rpc_server_call_duration_seconds"].values["rpc_method"]
        readme = (ROOT / "README.md").read_text()
        blocks = 0
        for path in RUNBOOKS.glob("*.md"):
            text = path.read_text()
            with self.subTest(path.name):
                for method in re.findall(r"workflowsecrets\.v1\.\w+/\w+", text):
                    self.assertIn(method, methods)
                for command in re.findall(r"workflow-secrets keys (\w+)", text):
                    self.assertIn(f"`{command}`", readme)
                for block in re.findall(r"(?ms)^ *```sh\n(.*?)^ *```", text):
                    blocks += 1
                    done = run("bash", "-n", "-c", block)
                    self.assertEqual(done.returncode, 0, f"{block}{done.stdout}")
        self.assertGreater(blocks, 20)


if __name__ == "__main__":
    unittest.main()
