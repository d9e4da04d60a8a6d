"""The Grafana dashboard: whole, and true to the metrics."""

import re
import tempfile
import unittest
from pathlib import Path

import yaml

from project import DEPLOY, read_json, run
from promql import PROMTOOL, catalogue, faults, rules, selectors

DASHBOARD = DEPLOY / "grafana/dashboard.json"
METRICS = catalogue()
# Of what Grafana calls units, those that stand here, by what is measured.
UNITS = {"s", "reqps", "ops", "percentunit", "none"}


def without_variables(expression):
    """As Grafana would send it."""
    expression = expression.replace("$__rate_interval", "5m")
    return re.sub(r"\$\w+", ".*", expression)


def units(kind, expression):
    """Those that fit what an expression gives."""
    if kind == "heatmap" or "histogram_quantile(" in expression:
        return {"s"}
    if " / " in expression or ":ratio_" in expression:
        return {"percentunit"}
    if "rate(" in expression:
        return {"reqps", "ops"}
    ((name, _), *_), _ = selectors(expression)
    return {"s"} if name.endswith("_seconds") and "increase(" not in expression else {"none"}


class Dashboard(unittest.TestCase):
    def setUp(self):
        self.dashboard = read_json(DASHBOARD)
        self.panels = self.dashboard["panels"]
        self.graphs = [panel for panel in self.panels if panel["type"] != "row"]

    def expressions(self):
        for panel in self.graphs:
            for target in panel["targets"]:
                yield panel, without_variables(target["expr"])

    def test_it_can_be_imported(self):
        # That of Grafana 12; later ones bring it up to theirs.
        self.assertEqual(self.dashboard["schemaVersion"], 41)
        self.assertNotIn("id", self.dashboard)
        self.assertNotIn("__inputs", self.dashboard)
        ids = [panel["id"] for panel in self.panels]
        self.assertEqual(len(ids), len(set(ids)))
        titles = [panel["title"] for panel in self.panels]
        self.assertEqual(len(titles), len(set(titles)))

    def test_panels_have_place_and_meaning(self):
        taken = set()
        for panel in self.panels:
            at = panel["gridPos"]
            with self.subTest(panel["title"]):
                cells = {
                    (x, y) for x in range(at["x"], at["x"] + at["w"])
                    for y in range(at["y"], at["y"] + at["h"])
                }
                self.assertLessEqual(at["x"] + at["w"], 24)
                self.assertFalse(cells & taken)
                taken |= cells
        for panel in self.graphs:
            with self.subTest(panel["title"]):
                self.assertIn(panel["type"], ("timeseries", "stat", "heatmap"))
                self.assertTrue(panel["description"])
                defaults = panel["fieldConfig"]["defaults"]
                unit = defaults.get("unit") or panel["options"]["yAxis"]["unit"]
                self.assertIn(unit, UNITS)
                refs = [target["refId"] for target in panel["targets"]]
                self.assertEqual(len(refs), len(set(refs)))

    def test_any_prometheus_can_be_chosen(self):
        names = [variable["name"] for variable in self.dashboard["templating"]["list"]]
        self.assertEqual(names, ["datasource", "namespace", "instance"])
        for panel in self.graphs:
            for place in [panel, *panel["targets"]]:
                self.assertEqual(place["datasource"], {"type": "prometheus", "uid": "${datasource}"})

    def test_every_expression_parses(self):
        listed = [{"record": f"panel:{n}", "expr": e} for n, (_, e) in enumerate(self.expressions())]
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "panels.yaml"
            path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": listed}]}))
            done = run(PROMTOOL, "check", "rules", path)
            self.assertEqual(done.returncode, 0, done.stdout)
            self.assertIn(f"{len(listed)} rules found", done.stdout)

    def test_expressions_refer_to_what_exists(self):
        recorded = [rule["record"] for rule in rules() if "record" in rule]
        for panel, expression in self.expressions():
            with self.subTest(panel["title"]):
                self.assertEqual(faults(expression, METRICS, recorded), [])

    def test_units_are_those_of_what_is_shown(self):
        for panel, expression in self.expressions():
            unit = panel["fieldConfig"]["defaults"].get("unit") or panel["options"]["yAxis"]["unit"]
            with self.subTest(panel["title"]):
                self.assertIn(unit, units(panel["type"], expression))

    def test_every_metric_is_shown(self):
        shown = {
            re.sub(r"_(bucket|count|sum)$", "", name)
            for _, expression in self.expressions() for name, _ in selectors(expression)[0]
        }
        self.assertEqual(set(METRICS) - shown, set())


if __name__ == "__main__":
    unittest.main()
