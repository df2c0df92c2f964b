"""Every metric, label and value that a panel, an alert or the runbook names is there in live /metrics."""

import re
from pathlib import Path

import pytest
from dashboard_files import DASHBOARDS, alerts, panel_queries, panels
from promql import TARGET_LABELS, faults, parse

RUNBOOK = (Path(__file__).resolve().parents[2] / "docs" / "runbook.md").read_text()
ALERTS = {rule["alert"]: rule for rule in alerts()}


@pytest.mark.parametrize("query", panel_queries(), ids=str)
def test_what_a_panel_asks_for_is_live(query, pages):
    assert not faults(query.expr, pages.series)


@pytest.mark.parametrize("query", panel_queries(), ids=str)
def test_legends_use_labels_that_the_query_keeps(query, pages):
    named = set(re.findall(r"{{\s*(\w+)\s*}}", query.legend))
    expression = parse(query.expr)
    kept = expression.labels or {
        label
        for name, labels in pages.series
        for label in labels
        if any(selector.selects(name, labels) for selector in expression.selectors)
    }
    assert named <= kept | TARGET_LABELS


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_say_what_they_show_and_in_which_unit(path):
    for panel in panels(path):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all("$namespace" in target["expr"] and "$job" in target["expr"] for target in panel["targets"])


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_do_not_overlap(path):
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels(path)
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


@pytest.mark.parametrize("rule", ALERTS.values(), ids=ALERTS)
def test_what_an_alert_watches_is_live(rule, pages):
    assert not faults(rule["expr"], pages.series)


@pytest.mark.parametrize("rule", ALERTS.values(), ids=ALERTS)
def test_an_alert_says_how_bad_it_is_and_where_to_read_on(rule):
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"].endswith(".")
    assert rule["annotations"]["description"].endswith(".")
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"


@pytest.mark.parametrize("rule", ALERTS.values(), ids=ALERTS)
def test_what_an_annotation_fills_in_is_kept_by_the_expression(rule, pages):
    named = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    expression = parse(rule["expr"])
    selected = {
        label
        for name, labels in pages.series
        for label in labels
        if any(selector.selects(name, labels) for selector in expression.selectors)
    }
    grouped = set(re.findall(r"\bby \(([^)]*)\)", rule["expr"]))
    kept = {label.strip() for group in grouped for label in group.split(",")} or selected | TARGET_LABELS
    assert named <= kept


def test_the_runbook_has_a_section_for_each_alert_and_no_other():
    assert re.findall(r"^### (\w+)$", RUNBOOK, re.MULTILINE) == list(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_a_section_says_what_to_look_at_and_what_to_do(name):
    section = RUNBOOK.partition(f"### {name}\n")[2].partition("\n#")[0]
    assert re.search(r"\*\*Means\.\*\*", section)
    assert re.search(r"\*\*Look( and do)?\.\*\*", section)
    assert re.search(r"\*\*Do\.\*\*|\*\*Look and do\.\*\*", section)


@pytest.mark.parametrize("query", re.findall(r"^```\n(.*?)^```$", RUNBOOK, re.MULTILINE | re.DOTALL))
def test_queries_of_the_runbook_are_live(query, pages):
    for line in query.splitlines():
        assert not faults(line, pages.series)
