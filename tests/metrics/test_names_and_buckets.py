"""Conventions that all metrics of router and shard keep, read from the processes themselves."""

import re
from itertools import pairwise

import pytest

UNITS = ("_seconds", "_bytes", "_ratio", "_info", "_tokens", "_requests", "_sequences", "_blocks", "_fds")
STATES = {
    *("pagewire_ready", "pagewire_draining", "pagewire_shard_ready", "pagewire_shard_draining"),
    *("pagewire_group_serving", "pagewire_group_draining", "pagewire_shard_lease_held"),
    *("pagewire_group_epoch", "pagewire_shard_epoch"),
}
"""Gauges that count nothing: they are 0 or 1, or a number that names something."""
COUNTS = re.compile(r"_(open|queued|running|inflight|cached)$")


def test_every_name_has_its_prefix_and_a_meaning(pages):
    for prefix, families in (("pagewire_", pages.router), ("pagewire_shard_", pages.shard)):
        for family in families:
            assert family.name.startswith((prefix, "process_")), family.name
            assert family.documentation.endswith("."), f"{family.name}: {family.documentation!r} is no sentence"


def test_router_and_shard_share_no_name(pages):
    router, shard = ({family.name for family in families} for families in (pages.router, pages.shard))
    assert all(name.startswith("process_") for name in router & shard)


def test_names_end_as_their_kind_asks(pages):
    for family in pages.all:
        match family.type:
            case "counter":
                assert all(sample.name.endswith("_total") for sample in family.samples), family.name
            case "gauge":
                known = family.name.endswith(UNITS) or family.name in STATES or COUNTS.search(family.name)
                assert known, f"{family.name}: what does it count, in which unit?"
            case "histogram":
                assert family.name.endswith(("_seconds", "_tokens", "_sequences")), family.name
            case other:
                pytest.fail(f"{family.name} is a {other}")


def test_bounds_of_every_histogram_are_close_enough_for_quantiles(pages):
    histograms = [family for family in pages.all if family.type == "histogram"]
    assert len(histograms) >= 16
    for family in histograms:
        for labels in {tuple(_own(sample.labels)) for sample in family.samples}:
            bounds = [
                float(sample.labels["le"])
                for sample in family.samples
                if sample.name.endswith("_bucket") and tuple(_own(sample.labels)) == labels
            ]
            assert bounds[-1] == float("inf")
            for low, high in pairwise(bounds[:-1]):
                # Whole numbers one after the other leave nothing between them.
                assert high / low <= 1.25 + 1e-9 or (high - low == 1 and not family.name.endswith("_seconds"))


def _own(labels):
    return sorted((name, value) for name, value in labels.items() if name != "le")


def test_times_of_a_millisecond_are_told_apart(pages):
    """A token can take a millisecond: ten buckets or more lie below it."""
    for name in ("pagewire_inter_token_latency_seconds", "pagewire_shard_step_seconds"):
        (family,) = (family for family in pages.all if family.name == name)
        bounds = [float(sample.labels["le"]) for sample in family.samples if "le" in sample.labels]
        assert sum(bound <= 1e-3 for bound in bounds) >= 10


def test_router_and_shard_count_the_same_tokens(pages):
    computed = pages.value("pagewire_tokens_total", kind="prompt_computed")
    cached = pages.value("pagewire_tokens_total", kind="prompt_cached")
    assert computed + cached == pages.value("pagewire_request_prompt_tokens_sum")
    assert cached == pages.value("pagewire_shard_prefix_cache_hit_tokens_total") >= 32
    assert computed + cached == pages.value("pagewire_shard_prefix_cache_queried_tokens_total")
    generated = pages.value("pagewire_tokens_total", kind="generation")
    assert generated == pages.value("pagewire_request_generation_tokens_sum")
    assert generated <= pages.value("pagewire_shard_sampled_tokens_total")
    assert pages.value("pagewire_tokens_total", kind="recomputed") == 0


def test_time_to_first_token_is_the_sum_of_its_parts(pages):
    parts = ("admission_time", "queue_time", "prefill_time")
    total = sum(pages.value(f"pagewire_{part}_seconds_sum") for part in parts)
    assert pages.value("pagewire_time_to_first_token_seconds_sum") == pytest.approx(total, rel=1e-6)
    assert pages.value("pagewire_time_to_first_token_seconds_count") == 6


def test_requests_over_http_are_counted_by_route_and_status(pages):
    for status, count in (("200", 1), ("404", 1), ("499", 0)):
        assert pages.value("pagewire_http_requests_total", route="/v1/completions", status=status) == count
    assert pages.value("pagewire_http_request_latency_seconds_count", route="/v1/completions") == 2
    assert pages.value("pagewire_http_sent_bytes_total", route="/v1/completions") > 100
    assert pages.value("pagewire_http_connections_cut_total", reason="stalled_reader") == 0


def test_blocks_are_the_same_on_both_sides(pages):
    blocks = pages.value("pagewire_shard_kv_cache_blocks")
    assert pages.value("pagewire_group_kv_cache_blocks") == blocks
    (model,) = (labels for name, labels in pages.series if name == "pagewire_model_info")
    assert float(model["num_gpu_blocks"]) == blocks
    assert pages.value("pagewire_group_epoch") == pages.value("pagewire_shard_epoch") == 1
