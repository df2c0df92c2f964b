"""How the GPU benchmark times a call: in a graph over several copies of its inputs and outputs, and by itself."""

import sys
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tools")]

from docs_pages.gpu_tables import gpu_tables  # noqa: E402
from gpu_parts import engine_driver  # noqa: E402
from gpu_parts.cases import Case  # noqa: E402
from gpu_parts.clock import Clock  # noqa: E402
from gpu_parts.engine_parts import NUM_PROFILE_ROWS, NUM_PROFILED, engine_for, profile_rows  # noqa: E402
from gpu_parts.part import Bench, Ceilings  # noqa: E402
from gpu_parts.roofline import num_copies, num_rounds, row  # noqa: E402

CPU = torch.device("cpu")
MIB, GIB = 1 << 20, 1 << 30


def bench_on(device: torch.device, folder: Path, tiny: bool = False) -> Bench:
    return Bench(device, torch.float32, tiny, Clock(device, 2), Ceilings(1e12, 1e12), folder, 4)


def test_calls_take_turns_and_what_they_spoil_is_restored_before_each_sample() -> None:
    ran: list[str] = []
    calls = [partial(ran.append, name) for name in ("a", "b")]
    timing = Clock(CPU, 2).time_in_graph(calls, 2, prepare=partial(ran.append, "-"))
    assert "".join(ran) == "-ab" + "-abab" + "-abab"
    assert timing.num_samples == 2
    assert 0 < timing.fastest_s <= timing.median_s


def test_a_call_alone_is_prepared_every_time() -> None:
    ran: list[str] = []
    assert Clock(CPU, 2).time(partial(ran.append, "a"), partial(ran.append, "-")).num_samples == 2
    assert "".join(ran) == "-a" * 5


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [(0, 64), (1000, 64), (8 * MIB, 64), (100 * MIB, 6), (128 * MIB, 4), (2 * GIB, 3), (5 * GIB, 2), (20 * GIB, 1)],
)
def test_copies_are_several_times_the_cache_but_no_more_than_memory_takes(num_bytes: int, expected: int) -> None:
    assert num_copies(num_bytes) == expected
    assert num_copies(num_bytes, 3) == min(expected, 3)


def test_a_replay_of_few_short_calls_goes_around_several_times() -> None:
    assert num_rounds(4 * MIB, 64) == 1
    assert num_rounds(128 * MIB, 4) == 4
    assert num_rounds(MIB, 3) == 21
    assert num_rounds(2 * GIB, 3) == 1


def test_a_row_times_calls_with_inputs_of_their_own(tmp_path: Path) -> None:
    made: list[torch.Tensor] = []
    used: set[int] = set()

    def make() -> Callable[[], object]:
        made.append(x := torch.zeros(4))
        return lambda: used.add(x.data_ptr())

    num_bytes = 100.0 * MIB
    result = row(bench_on(CPU, tmp_path), "x", make, num_bytes)
    assert result["num_copies"] == len(made) == len(used) == 6
    assert result["of_roofline"] == pytest.approx(num_bytes / 1e12 / (result["median_us"] * 1e-6))
    assert result["of_copy"] > 0
    assert result["alone_us"] > 0


def test_a_row_bound_by_its_operations_is_not_compared_with_a_copy(tmp_path: Path) -> None:
    result = row(bench_on(CPU, tmp_path, tiny=True), "x", lambda: lambda: None, 8.0, 1e12)
    assert result["of_copy"] is None
    assert result["num_copies"] == 3


def test_a_row_that_spoils_its_inputs_gets_them_fresh(tmp_path: Path) -> None:
    inputs: list[torch.Tensor] = []
    seen: set[float] = set()

    def call(x: torch.Tensor) -> None:
        seen.add(float(x))
        x += 1

    def make() -> Callable[[], object]:
        inputs.append(torch.zeros(()))
        return partial(call, inputs[-1])

    def restore() -> None:
        for x in inputs:
            x.zero_()

    row(bench_on(CPU, tmp_path), "x", make, 200.0 * MIB, prepare=restore)
    assert seen == {0.0}


def test_a_profile_has_one_row_for_each_name_with_the_time_of_one_call() -> None:
    kernels = [("attend", 20.0 * NUM_PROFILED, NUM_PROFILED), ("x" * 100, 30.0, 3), ("x" * 95, 50.0, 1)]
    kernels += [(f"small {i}", 0.5, 1) for i in range(NUM_PROFILE_ROWS)]
    rows = profile_rows(kernels)
    assert rows[0] == {"name": "attend", "us_per_step": 20.0, "calls_per_step": 1.0, "us_per_call": 20.0}
    assert rows[1] == {
        "name": "x" * 90,
        "us_per_step": 80 / NUM_PROFILED,
        "calls_per_step": 4 / NUM_PROFILED,
        "us_per_call": 20.0,
    }
    assert [r["name"] for r in rows[NUM_PROFILE_ROWS:]] == ["the rest", "sum"]
    assert rows[-2]["us_per_step"] == pytest.approx(2 * 0.5 / NUM_PROFILED)
    assert rows[-1]["us_per_step"] == pytest.approx(sum(us for _, us, _ in kernels) / NUM_PROFILED)


@pytest.mark.parametrize(("measured", "column"), [({"alone_us": 50.9}, "| alone, µs "), ({}, "")])
def test_the_page_shows_the_single_call_where_it_was_measured(measured: dict[str, float], column: str) -> None:
    rows = [{"name": "decode", "median_us": 39.9, **measured, "of_roofline": 0.8}]
    (table,) = gpu_tables({"parts": {"attention:x": {"state": "done", "rows": rows}}})
    assert f"| time, µs {column}| of the roofline |" in table
    assert ("50.9" in table) == bool(measured)


@pytest.mark.gpu
def test_a_graph_runs_every_call_and_keeps_their_outputs_apart() -> None:
    device = torch.device("cuda")
    counters = [torch.zeros(1024, device=device) for _ in range(3)]
    addresses: list[int] = []

    def call(counter: torch.Tensor) -> torch.Tensor:
        counter += 1
        addresses.append((output := counter * 2).data_ptr())
        return output

    timing = Clock(device, 5).time_in_graph([partial(call, counter) for counter in counters], 2)
    assert timing.median_s > 0
    # One warm-up of each, then 3 replays that warm up and 5 that are timed, of two rounds.
    assert [int(counter[0]) for counter in counters] == [1 + 8 * 2] * 3
    assert len(set(addresses[3:])) == 6


@pytest.mark.gpu
def test_a_replay_finds_its_inputs_restored() -> None:
    x = torch.zeros(1024, device="cuda")
    Clock(x.device, 5).time_in_graph([partial(x.add_, 1)], prepare=x.zero_)
    assert float(x[0]) == 1.0


class StandInEngine:
    """Something that can be watched as it goes."""


def test_an_engine_with_too_small_a_pool_is_gone_before_the_next_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_on(CPU, tmp_path, tiny=True)
    made: list[weakref.ref[StandInEngine]] = []

    def build(bench: Bench, shape: object, pool_bytes: int) -> StandInEngine:
        assert not any(other() for other in made), "two engines at a time do not fit on a device"
        engine = StandInEngine()
        made.append(weakref.ref(engine))
        return engine

    monkeypatch.setattr(engine_driver, "build", build)
    engine_for(bench, Case("llama-8b", 1, 1024), 1)
    engine_for(bench, Case("llama-8b", 1, 1024), 10_000_000)
    assert len(made) == 2
