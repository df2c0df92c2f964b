"""Benchmark arithmetic, against figures worked out by hand."""

import math

import pytest
from pagewire.bench.metrics import (
    RequestOutcome,
    ServiceLevel,
    compute_metrics,
    max_concurrent_requests,
    percentile,
    summarize_ms,
    tokens_per_second,
)

# Two tokens at 0.2 s, one at 0.3 s, three at 0.6 s; the stream ends at 0.61 s.
PACKED = RequestOutcome(
    start_s=0.1,
    end_s=0.61,
    num_prompt_tokens=10,
    num_cached_tokens=4,
    message_times_s=(0.2, 0.3, 0.6),
    message_tokens=(2, 1, 3),
)
SINGLE = RequestOutcome(
    start_s=0.5, end_s=1.5, num_prompt_tokens=5, message_times_s=(1.4,), message_tokens=(1,), text="x"
)
FAILED = RequestOutcome(start_s=0.0, end_s=0.05, error="UNAVAILABLE: gone")


def test_latencies_of_a_request_whose_messages_hold_several_tokens() -> None:
    assert PACKED.num_output_tokens == 6
    assert PACKED.ttft_s == pytest.approx(0.1)
    assert PACKED.e2el_s == pytest.approx(0.51)
    assert PACKED.tpot_s == pytest.approx(0.4 / 5)
    assert PACKED.itls_s == pytest.approx([0.1, 0.3])
    assert PACKED.token_itls_s == pytest.approx([0.1, 0.1, 0.1, 0.1])


def test_a_single_token_has_no_gaps() -> None:
    assert (SINGLE.tpot_s, SINGLE.itls_s, SINGLE.token_itls_s) == (0.0, [], [])


def test_a_request_without_tokens_has_no_first_one() -> None:
    assert math.isnan(FAILED.ttft_s)


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([], 50, 0.0),
        ([7.0], 99, 7.0),
        ([1.0, 2.0], 50, 1.5),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 90, 4.6),
        ([0.0, 10.0], 99, 9.9),
    ],
)
def test_percentiles_interpolate(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == pytest.approx(expected)


def test_summaries_are_in_milliseconds_and_name_their_percentiles() -> None:
    summary = summarize_ms("ttft", [0.004, 0.002], (50, 99.9))
    assert list(summary) == ["mean_ttft_ms", "median_ttft_ms", "std_ttft_ms", "p50_ttft_ms", "p99.9_ttft_ms"]
    assert list(summary.values()) == pytest.approx([3.0, 3.0, 1.0, 3.0, 3.998])


def test_totals_count_completed_requests_alone() -> None:
    result = compute_metrics([PACKED, SINGLE, FAILED], duration_s=2.0)
    assert (result["completed"], result["failed"]) == (2, 1)
    assert (result["total_input_tokens"], result["total_cached_tokens"]) == (15, 4)
    assert (result["total_output_tokens"], result["total_messages"]) == (7, 4)
    assert result["request_throughput"] == pytest.approx(1.0)
    assert result["output_throughput"] == pytest.approx(3.5)
    assert result["total_token_throughput"] == pytest.approx(11.0)
    assert result["request_goodput"] is None
    assert result["mean_ttft_ms"] == pytest.approx((100 + 900) / 2)
    assert result["mean_tpot_ms"] == pytest.approx(80.0)
    assert result["mean_itl_ms"] == pytest.approx(200.0)
    assert result["mean_token_itl_ms"] == pytest.approx(100.0)
    assert result["p99_e2el_ms"] == pytest.approx(510 + 0.99 * 490)


def test_goodput_asks_for_every_bound() -> None:
    def goodput(*levels: str) -> float | int | None:
        parsed = [ServiceLevel.parse(level) for level in levels]
        return compute_metrics([PACKED, SINGLE, FAILED], 2.0, service_levels=parsed)["request_goodput"]

    assert goodput("ttft:1000") == pytest.approx(1.0)
    assert goodput("ttft:500") == pytest.approx(0.5)
    assert goodput("ttft:500", "tpot:50") == pytest.approx(0.0)
    assert goodput("e2el:600", "tpot:100") == pytest.approx(0.5)


@pytest.mark.parametrize("text", ["ttft", "ttft:", "ttft:0", "ttft:-1", "itl:5", "ttft:nan", ":5"])
def test_malformed_bounds_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="MILLISECONDS"):
        ServiceLevel.parse(text)


def test_peak_concurrency_does_not_count_a_request_that_just_ended() -> None:
    outcomes = [RequestOutcome(0.0, 1.0), RequestOutcome(1.0, 2.0), RequestOutcome(0.5, 1.5)]
    assert max_concurrent_requests(outcomes) == 2


def test_tokens_are_counted_in_the_second_of_their_arrival() -> None:
    assert tokens_per_second([PACKED, SINGLE], 1.5) == [6, 1]
    late = RequestOutcome(0.0, 2.0, message_times_s=(2.0,), message_tokens=(5,))
    assert tokens_per_second([late], 2.0) == [0, 5]


def test_an_empty_run_has_a_result() -> None:
    result = compute_metrics([FAILED], duration_s=1.0)
    assert (result["completed"], result["output_throughput"], result["p99_itl_ms"]) == (0, 0.0, 0.0)
