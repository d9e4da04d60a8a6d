"""What PromQL expressions of deploy/ refer to, and what deploy/METRICS.md says exists."""

import itertools
import os
import re
from dataclasses import dataclass, field

import yaml

from project import DEPLOY, ROOT

PROMTOOL = os.environ.get("WFS_PROMTOOL", "promtool")
RULE_FILES = (DEPLOY / "prometheus/objectives.yaml", DEPLOY / "prometheus/alerts.yaml")
# Put there by Prometheus' discovery, not by the service.
TARGET_LABELS = {"namespace", "instance", "job", "pod", "le"}
WORDS = {
    "and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right",
    "offset", "bool", "inf", "nan",
}
GROUPING = r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)"
SELECTOR = r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(?:\{([^{}]*)\})?"
MATCHER = r'\s*([a-zA-Z_]\w*)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"\s*'


def rules():
    """Every rule, in order."""
    for path in RULE_FILES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def alerts():
    return [rule for rule in rules() if "alert" in rule]


def selectors(expression):
    """Pairs of a metric and its matchers, and the labels that are grouped by."""
    labels = {
        label.strip()
        for group in re.findall(GROUPING, expression)
        for label in group.split(",")
        if label.strip()
    }
    rest = re.sub(GROUPING, " ", expression)
    rest = re.sub(r"\[[^\]]*\]", " ", rest)
    rest = re.sub(r"\boffset\s+\w+", " ", rest)
    found = []
    position = 0
    for match in re.finditer(SELECTOR, rest):
        # Within the braces of the one before, or part of a number such as 1e3.
        if match.start() < position or re.search(r"[\w.]$", rest[: match.start()]):
            continue
        position = match.end()
        name, inside = match.groups()
        if inside is None and (name in WORDS or rest[match.end() :].lstrip().startswith("(")):
            continue
        matchers = []
        if inside is not None:
            for part in re.split(r',(?=(?:[^"]*"[^"]*")*[^"]*$)', inside):
                if part.strip():
                    parsed = re.fullmatch(MATCHER, part)
                    assert parsed, f"{name}: {part}"
                    matchers.append(parsed.groups())
        found.append((name, matchers))
    return found, labels


@dataclass
class Metric:
    kind: str
    labels: set
    values: dict = field(default_factory=dict)


def rows(text, head):
    """The rows of the table that begins so, without code marks."""
    lines = itertools.dropwhile(lambda line: not line.startswith(head), text.splitlines())
    for line in itertools.takewhile(lambda line: line.startswith("|"), list(lines)[2:]):
        yield [cell.strip() for cell in line.strip("|").split(" | ")]


def catalogue():
    """The metrics at `/metrics`, with the values that their labels may have."""
    text = (DEPLOY / "METRICS.md").read_text()
    metrics = {}
    for _, name, kind, _, labels, _ in rows(text, "| OTLP |"):
        labels = {label.replace(".", "_") for label in re.findall(r"`([^`]+)`", labels)}
        metrics[name.strip("`")] = Metric(kind, labels)
    for attribute, told in rows(text, "| Attribute |"):
        label, *scope = re.findall(r"`([^`]+)`|of (?:the )?(\w+)", attribute)
        label = label[0].replace(".", "_")
        scope = scope[0][1].lower() if scope else ""
        values = set(re.findall(r"`([A-Za-z_]+)`", told))
        for name, metric in metrics.items():
            if label in metric.labels and f"_{scope}" in f"_{name}":
                metric.values.setdefault(label, set()).update(values)
    services = "".join(path.read_text() for path in (ROOT / "proto").rglob("*.proto"))
    methods = set()
    for package in re.findall(r"(?m)^package ([\w.]+);", services):
        for service, body in re.findall(r"(?ms)^service (\w+) \{(.*?)^\}", services):
            methods |= {f"{package}.{service}/{name}" for name in re.findall(r"\brpc (\w+)", body)}
    reasons = set(re.findall(r'=> "([A-Z_]+)"', (ROOT / "src/service/error.rs").read_text()))
    audit = (ROOT / "src/service/audit.rs").read_text()
    actions = set(re.findall(r'Self::\w+ => "([a-z_]+)"', audit))
    calls = metrics["workflow_secrets_calls_total"]
    calls.values |= {"outcome": reasons | {"ok"}, "action": actions}
    rpc = metrics["rpc_server_call_duration_seconds"]
    status = (ROOT / "src/grpc/observe.rs").read_text()
    codes = set(re.findall(r'Code::\w+ => "([A-Z_]+)"', status))
    rpc.values |= {"rpc_method": methods, "rpc_response_status_code": codes}
    return metrics


def faults(expression, metrics, recorded=()):
    """What an expression refers to that does not exist."""
    found, grouped = selectors(expression)
    wrong = [f"label {label}" for label in grouped]
    told = []
    for name, matchers in found:
        if name in recorded:
            wrong = [fault for fault in wrong if fault != "label namespace"]
            continue
        base = re.sub(r"_(bucket|count|sum)$", "", name)
        metric = metrics.get(name) or metrics.get(base)
        if metric is None or (metric.kind == "histogram") != (base != name):
            told.append(f"metric {name}")
            continue
        known = metric.labels | TARGET_LABELS
        wrong = [fault for fault in wrong if fault.removeprefix("label ") not in known]
        for label, operator, value in matchers:
            if label not in known:
                told.append(f"label {name}.{label}")
            elif label in metric.values and value:
                may = metric.values[label]
                hit = {v for v in may if re.fullmatch(value, v)} if "~" in operator else may & {value}
                want = value.count("|") + 1 if "~" in operator else 1
                if len(hit) < want:
                    told.append(f"value {name}.{label}: {value}")
    return told + wrong
