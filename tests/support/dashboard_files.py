"""The chart's dashboards and rules, as Prometheus sees them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[2] / "helm" / "pagewire"
DASHBOARDS = sorted((CHART / "dashboards").glob("*.json"))
RULE_FILES = sorted((CHART / "rules").glob("*.yaml"))
VARIABLES = {"$namespace": ".*", "$job": ".*", "$__rate_interval": "1m", "$__range": "5m"}
"""Values that Grafana substitutes when everything is selected."""


@dataclass(frozen=True)
class PanelQuery:
    dashboard: str
    panel: str
    expr: str
    """The expression with all variables substituted."""
    legend: str

    def __str__(self) -> str:
        return f"{self.dashboard}/{self.panel}"


def panels(path: Path) -> list[dict[str, Any]]:
    """Rows left out."""
    return [panel for panel in json.loads(path.read_text())["panels"] if panel["type"] != "row"]


def panel_queries() -> list[PanelQuery]:
    """Yields the queries of all panels of all dashboards."""
    return list(_panel_queries())


def _panel_queries() -> Iterator[PanelQuery]:
    for path in DASHBOARDS:
        for panel in panels(path):
            for target in panel["targets"]:
                expr = target["expr"]
                for variable, value in VARIABLES.items():
                    expr = expr.replace(variable, value)
                yield PanelQuery(path.stem, panel["title"], expr, target["legendFormat"])


def alerts() -> list[dict[str, Any]]:
    """Every alert rule."""
    groups = [group for path in RULE_FILES for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]
