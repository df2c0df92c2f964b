"""The prompts and the arrival times of a benchmark."""

import json
import math
import random
import statistics
from pathlib import Path

import pytest
from pagewire.bench.arrivals import arrival_times_s
from pagewire.bench.workloads import LengthRange, Prefixes, from_file, random_tokens, shared_prefixes
from pagewire.errors import InvalidRequest


def gaps(times_s: list[float]) -> list[float]:
    return [later - earlier for earlier, later in zip([0.0, *times_s], times_s, strict=False)]


@pytest.mark.parametrize(("burstiness", "variation"), [(1.0, 1.0), (0.25, 2.0), (100.0, 0.1)])
def test_arrivals_have_the_rate_and_the_burstiness_asked_for(burstiness: float, variation: float) -> None:
    times_s = arrival_times_s(20_000, 50.0, burstiness, random.Random(1))
    assert times_s == sorted(times_s)
    mean_s = statistics.fmean(gaps(times_s))
    assert mean_s == pytest.approx(1 / 50, rel=0.05)
    # A gamma distribution of shape k has the coefficient of variation 1 / sqrt(k).
    assert statistics.pstdev(gaps(times_s)) / mean_s == pytest.approx(variation, rel=0.05)


def test_a_closed_loop_has_all_requests_at_once() -> None:
    assert arrival_times_s(3, math.inf, 1.0, random.Random(0)) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("rate", "burstiness"), [(0.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (1.0, 0.0), (1.0, math.inf)]
)
def test_impossible_arrivals_are_refused(rate: float, burstiness: float) -> None:
    with pytest.raises(InvalidRequest, match="must be above 0"):
        arrival_times_s(1, rate, burstiness, random.Random(0))


def test_random_prompts_have_the_lengths_asked_for() -> None:
    prompts = random_tokens(5, LengthRange(7), LengthRange(3), range(10, 20), random.Random(0))
    assert [(len(prompt.content), prompt.max_tokens) for prompt in prompts] == [(7, 3)] * 5
    assert all(10 <= token < 20 for prompt in prompts for token in prompt.content)  # type: ignore[operator]


def test_lengths_vary_within_their_range_and_stay_positive() -> None:
    rng = random.Random(0)
    assert {LengthRange(10, 0.5).draw(rng) for _ in range(1000)} == set(range(5, 16))
    assert {LengthRange(1, 0.9).draw(rng) for _ in range(100)} == {1, 2}


def test_a_seed_makes_the_same_prompts() -> None:
    first, second = (
        random_tokens(4, LengthRange(8, 0.5), LengthRange(8, 0.5), range(100), random.Random(7)) for _ in range(2)
    )
    assert first == second


def test_prefixes_are_shared_evenly_and_suffixes_are_not() -> None:
    prompts = shared_prefixes(
        12, Prefixes(count=3, length=16), LengthRange(8), LengthRange(4), range(1000), random.Random(0)
    )
    prefixes = [tuple(prompt.content[:16]) for prompt in prompts]
    assert sorted(prefixes.count(prefix) for prefix in set(prefixes)) == [4, 4, 4]
    assert len({tuple(prompt.content[16:]) for prompt in prompts}) == 12


def test_a_text_file_has_a_prompt_in_each_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\n  two\n")
    prompts = from_file(path, 3, LengthRange(5), random.Random(0))
    assert [prompt.content for prompt in prompts] == ["one", "  two", "one"]


def test_a_jsonl_file_may_hold_tokens_and_lengths(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "one"}, {"prompt_token_ids": [1, 2], "max_tokens": 9}]
    path.write_text("\n".join(map(json.dumps, lines)))
    prompts = from_file(path, 2, LengthRange(5), random.Random(0))
    assert [(prompt.content, prompt.max_tokens) for prompt in prompts] == [("one", 5), ([1, 2], 9)]


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.txt", "\n\n", "holds no prompts"),
        ("a.jsonl", '{"prompt": "x"}\n{', "a.jsonl:2: not JSON"),
        ("a.jsonl", "[]", 'expected an object with "prompt"'),
        ("a.jsonl", '{"prompt": ""}', 'expected an object with "prompt"'),
        ("a.jsonl", '{"prompt": "x", "max_tokens": 0}', "max_tokens must be a positive integer"),
    ],
)
def test_unusable_files_are_named(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=complaint):
        from_file(path, 1, LengthRange(1), random.Random(0))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"nowhere\.txt: cannot be read"):
        from_file(tmp_path / "nowhere.txt", 1, LengthRange(1), random.Random(0))
