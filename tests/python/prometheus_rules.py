"""The rules of deploy/prometheus as resources of Prometheus' operator.

`prometheus_rules.py --update` writes them to deploy/kubernetes/monitoring.
"""

import sys

from project import DEPLOY
from promql import RULE_FILES

MONITORING = DEPLOY / "kubernetes/monitoring"


def resource(path):
    """The text of the PrometheusRule that holds the rules of a file."""
    head, groups = path.read_text().split("groups:\n", 1)
    groups = "".join(f"  {line}" if line.strip() else line for line in groups.splitlines(True))
    return (
        f"# Made from deploy/prometheus/{path.name}, which says why: change it there.\n"
        "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\n"
        f"metadata:\n  name: workflow-secrets-{path.stem}\nspec:\n  groups:\n{groups}"
    )


def main():
    for path in RULE_FILES:
        (MONITORING / path.name).write_text(resource(path))


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit(__doc__)
    main()
