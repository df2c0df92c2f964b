"""From a few words for each panel to Grafana's JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

SCHEMA_VERSION = 39
WIDTH = 24
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
SELECTOR = 'namespace=~"$namespace",job=~"$job"'
"""What @ stands for in a query: the routers and shards that the dashboard's variables select."""


@dataclass(frozen=True, slots=True)
class Query:
    """A line, or a family of lines."""

    expr: str
    """PromQL; @ stands for SELECTOR."""
    legend: str = ""
    """Grafana's legend format, with {{label}}."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel."""

    title: str
    description: str
    unit: str
    """Grafana's name of the unit."""
    queries: Sequence[Query]
    kind: str = "timeseries"
    """timeseries, stat, heatmap or table."""
    width: int = 8
    height: int = 8
    stacked: bool = False
    maximum: float | None = None
    """Upper end of the axis."""

    def to_json(self, panel_id: int, position: dict[str, int]) -> dict[str, Any]:
        """Grafana's description of it."""
        return {
            "id": panel_id,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": DATASOURCE,
            "gridPos": position,
            "fieldConfig": {"defaults": self._defaults(), "overrides": []},
            "options": _OPTIONS[self.kind],
            "targets": [self._target(query, chr(ord("A") + i)) for i, query in enumerate(self.queries)],
        } | ({"transformations": _TABLE_TRANSFORMATIONS} if self.kind == "table" else {})

    def _defaults(self) -> dict[str, Any]:
        defaults: dict[str, Any] = {"unit": self.unit}
        if self.kind == "timeseries":
            stacking = {"mode": "normal" if self.stacked else "none", "group": "A"}
            defaults |= {
                "min": 0,
                "custom": {
                    "lineWidth": 1,
                    "fillOpacity": 30 if self.stacked else 8,
                    "showPoints": "never",
                    "stacking": stacking,
                },
            }
        if self.maximum is not None:
            defaults["max"] = self.maximum
        return defaults

    def _target(self, query: Query, ref_id: str) -> dict[str, Any]:
        target: dict[str, Any] = {
            "refId": ref_id,
            "datasource": DATASOURCE,
            "expr": query.expr.replace("@", SELECTOR),
            "legendFormat": query.legend or "__auto",
        }
        if self.kind in ("stat", "table"):
            target |= {"instant": True, "range": False}
        if self.kind in ("heatmap", "table"):
            target["format"] = self.kind
        return target


@dataclass(frozen=True, slots=True)
class Row:
    """A heading and the panels under it."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One dashboard."""

    name: str
    """Of its file, and of its address in Grafana."""
    title: str
    description: str
    rows: Sequence[Row]

    def to_json(self) -> dict[str, Any]:
        """Grafana's description of it."""
        return {
            "uid": f"pagewire-{self.name}",
            "title": self.title,
            "description": self.description,
            "tags": ["pagewire"],
            "schemaVersion": SCHEMA_VERSION,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-1h", "to": "now"},
            "links": [
                {"type": "dashboards", "title": "pagewire", "tags": ["pagewire"], "asDropdown": True, "keepTime": True}
            ],
            "templating": {"list": _VARIABLES},
            "panels": list(self._panels()),
        }

    def _panels(self) -> Iterator[dict[str, Any]]:
        y = panel_id = 0
        for row in self.rows:
            panel_id += 1
            heading = {"x": 0, "y": y, "w": WIDTH, "h": 1}
            yield {"id": panel_id, "type": "row", "title": row.title, "gridPos": heading, "panels": []}
            y += 1
            x = height = 0
            for panel in row.panels:
                if x + panel.width > WIDTH:
                    x, y, height = 0, y + height, 0
                panel_id += 1
                yield panel.to_json(panel_id, {"x": x, "y": y, "w": panel.width, "h": panel.height})
                x, height = x + panel.width, max(height, panel.height)
            y += height


def rate(metric: str, *, by: str = "", labels: str = "") -> str:
    """Per second, summed by labels."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({metric}{{@{',' if labels else ''}{labels}}}[$__rate_interval]))"


def quantile(q: float, histogram: str, *, by: str = "", labels: str = "") -> str:
    """A quantile of a histogram over the time between two points of the graph."""
    buckets = rate(f"{histogram}_bucket", by=f"le, {by}" if by else "le", labels=labels)
    return f"histogram_quantile({q:g}, {buckets})"


def quantiles(histogram: str, *, by: str = "") -> list[Query]:
    """Median, 90th and 99th percentile."""
    suffix = "".join(f" {{{{{label.strip()}}}}}" for label in by.split(",") if label)
    return [Query(quantile(q, histogram, by=by), f"p{q * 100:g}{suffix}") for q in (0.5, 0.9, 0.99)]


def mean(histogram: str, *, by: str = "") -> str:
    """Sum over count."""
    return f"{rate(f'{histogram}_sum', by=by)} / {rate(f'{histogram}_count', by=by)}"


def heatmap(title: str, description: str, histogram: str, unit: str = "s") -> Panel:
    """All buckets of a histogram over time."""
    return Panel(title, description, unit, [Query(rate(f"{histogram}_bucket", by="le"), "{{le}}")], "heatmap", width=12)


def stat(title: str, description: str, unit: str, expr: str) -> Panel:
    """One number."""
    return Panel(title, description, unit, [Query(expr)], "stat", width=4, height=4)


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        # Also for targets without the label, such as those of a Prometheus outside Kubernetes.
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


_EITHER = '{__name__=~"pagewire_info|pagewire_shard_info"'
_VARIABLES = [
    {"name": "datasource", "label": "data source", "type": "datasource", "query": "prometheus", "current": {}},
    _variable("namespace", f"label_values({_EITHER}}}, namespace)"),
    _variable("job", f'label_values({_EITHER},namespace=~"$namespace"}}, job)'),
]
_TABLE_TRANSFORMATIONS = [
    {"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True, "__name__": True}}}
]
_OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "area",
    },
    "heatmap": {
        "calculate": False,
        "cellGap": 0,
        "color": {"mode": "scheme", "scheme": "Oranges", "scale": "exponential", "exponent": 0.5, "steps": 64},
        "yAxis": {"unit": "s"},
        "tooltip": {"mode": "single", "yHistogram": True},
    },
    "table": {"showHeader": True},
}
