"""Histograms: their bounds, and what they tell Prometheus."""

import math
from itertools import pairwise

import pytest
from metrics_page import samples_of
from pagewire_common.histogram import Histogram, bounds_between, bounds_of_counts, render
from prometheus_client.parser import text_string_to_metric_families


@pytest.mark.parametrize("bounds", [bounds_between(-4, 2), bounds_between(-3, 4), bounds_of_counts(6)])
def test_bounds_are_so_close_that_quantiles_can_be_read(bounds):
    assert all(b / a <= 1.25 + 1e-9 or (b - a == 1 and a.is_integer()) for a, b in pairwise(bounds))
    assert len(set(bounds)) == len(bounds)


def test_bounds_are_round_numbers_that_all_histograms_share():
    assert bounds_between(-3, -2) == (
        *(0.001, 0.0012, 0.0015, 0.0018, 0.0022, 0.0027, 0.0033, 0.0039, 0.0047, 0.0056, 0.0068, 0.0082),
        0.01,
    )
    assert set(bounds_between(-3, 1)) < set(bounds_between(-4, 2))


def test_a_histogram_counts_values_up_to_and_with_each_bound():
    counted = Histogram("h", "Help.", (1.0, 2.0))
    counted.observe(1.0)
    counted.observe(1.5, 3)
    counted.observe(9.0)
    samples = samples_of(render([counted]))
    assert samples == {
        ("h_bucket", "1.0"): 1,
        ("h_bucket", "2.0"): 4,
        ("h_bucket", "+Inf"): 5,
        ("h_count",): 5,
        ("h_sum",): 14.5,
    }
    assert (counted.count, counted.sum) == (5, 14.5)


def test_histograms_that_share_a_name_are_one_family():
    parts = [Histogram("h", "Help.", (1.0,), label=("part", name)) for name in ("a", "b")]
    parts[1].observe(math.pi)
    (family,) = text_string_to_metric_families(render(parts))
    assert (family.name, family.type, family.documentation) == ("h", "histogram", "Help.")
    assert {sample.labels["part"]: sample.value for sample in family.samples if sample.name == "h_count"} == {
        "a": 0,
        "b": 1,
    }
