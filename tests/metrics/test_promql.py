"""The reader of PromQL that the other tests rely on."""

import pytest
from promql import Matcher, Selector, faults, parse

LIVE = [
    ("calls_total", {"method": "a", "status": "OK"}),
    ("calls_total", {"method": "b", "status": "OK"}),
    ("time_seconds_bucket", {"le": "1.0"}),
]


def test_selectors_and_labels_are_found_among_functions_and_keywords():
    expression = parse(
        'histogram_quantile(0.99, sum by (le, x) (rate(time_seconds_bucket{a="b",c=~"d|e"}[5m]))) > bool 1e3 '
        "or -calls_total offset 5m and on (instance) group_left (y) up == 0 unless ignoring (z) other"
    )
    assert expression.selectors == [
        Selector("time_seconds_bucket", (Matcher("a", "=", "b"), Matcher("c", "=~", "d|e"))),
        Selector("calls_total"),
        Selector("up"),
        Selector("other"),
    ]
    assert expression.labels == {"le", "x", "instance", "y", "z"}


def test_a_selector_may_have_no_name():
    assert parse('count({__name__=~"a|b"})').selectors == [Selector("", (Matcher("__name__", "=~", "a|b"),))]


@pytest.mark.parametrize("text", ["sum(a", "a)", "a{b}", 'a{b=="c"}', "a ; b", "a{b=c}"])
def test_what_is_no_promql_is_refused(text):
    with pytest.raises(AssertionError):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        'sum by (method) (rate(calls_total{status="OK",job=~".*"}[1m]))',
        'count({__name__=~"calls_total|other"})',
        "up == 0 and on (instance) calls_total",
        "histogram_quantile(0.5, sum by (le) (rate(time_seconds_bucket[1m])))",
    ],
)
def test_expressions_that_live_series_bear_out_have_no_faults(text):
    assert not faults(text, LIVE)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("calls", "nothing is selected"),
        ("time_seconds", "nothing is selected"),
        ('calls_total{status="BAD"}', "nothing is selected"),
        ('calls_total{status!~"O."}', "nothing is selected"),
        ('calls_total{code="OK"}', "no label ['code']"),
        ("sum by (code) (calls_total)", "has the label ['code']"),
        ('{__name__=~"x.*"}', "nothing is selected"),
    ],
)
def test_names_labels_and_values_that_are_not_live_are_faults(text, fault):
    assert fault in " ".join(faults(text, LIVE))
