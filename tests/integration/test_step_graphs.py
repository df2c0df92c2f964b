"""Steps of captured sizes, padded with void rows and tokens, on a CPU: what is captured on a GPU is called here."""

import gc
import io
from functools import partial
from itertools import pairwise

import pytest
import torch
from model_world import MakeRunner
from pagewire_router.scheduling.sequence import SequenceGroup
from pagewire_shard.execution.device_state import STOP_REASON, DeviceState
from pagewire_shard.execution.gpu_runner import GraphRunner
from pagewire_shard.execution.graph_capture import CpuCapturer
from pagewire_shard.execution.graph_sizes import GraphSizes, graph_sizes
from pagewire_shard.execution.host_transfer import CpuDownlink, CpuUplink
from reference_model import Comparison
from scheduling_world import output
from subject import NUM_TOKENS, Subject

MIXED = ((8, 4), (24, 2), (24, 16), (64, 16), (512, 16))
"""(tokens, rows)."""


def with_graphs(*rows: int, mixed: tuple[tuple[int, int], ...] = MIXED) -> MakeRunner:
    sizes = GraphSizes(rows, mixed)
    return partial(GraphRunner, uplink=CpuUplink(), downlink=CpuDownlink(), capturer=CpuCapturer(), sizes=sizes)


def submit(world, subject: Subject, **options: object) -> list[SequenceGroup]:
    return [world.submit(e.prompt, max_tokens=NUM_TOKENS, **options) for e in subject.greedy]


@pytest.mark.parametrize("max_num_batched_tokens", [1, 8, 60, 64, 200, 512, 5000, 8192, 16384])
@pytest.mark.parametrize("max_num_seqs", [1, 3, 20, 256, 500, 1024, 3000])
def test_there_are_graphs_for_every_step_that_the_limits_allow(max_num_seqs: int, max_num_batched_tokens: int) -> None:
    sizes = graph_sizes(max_num_seqs, max_num_batched_tokens)
    max_rows = min(max_num_seqs, max_num_batched_tokens)
    assert sizes.rows[-1] == max_rows
    assert sizes.mixed[-1] == (max_num_batched_tokens, max_rows)
    assert list(sizes.rows) == sorted(set(sizes.rows))
    assert list(sizes.mixed) == sorted(set(sizes.mixed))
    for num_tokens in range(1, max_num_batched_tokens + 1, 37):
        most_rows = max(rows for tokens, rows in sizes.mixed if tokens == _holding(num_tokens, sizes))
        assert most_rows >= min(num_tokens, max_rows)


def _holding(num_tokens: int, sizes: GraphSizes) -> int:
    return min(tokens for tokens, _ in sizes.mixed if tokens >= num_tokens)


@pytest.mark.parametrize("max_num_batched_tokens", [8192, 16384])
def test_sizes_are_an_eighth_apart_at_most_and_not_too_many(max_num_batched_tokens: int) -> None:
    sizes = graph_sizes(1024, max_num_batched_tokens)
    tokens = sorted({tokens for tokens, _ in sizes.mixed})
    assert all(after - before <= max(64, before / 8) for before, after in pairwise(tokens))
    assert len(sizes.rows) + len(sizes.mixed) <= 130
    assert sizes.num_forwards <= 142


def test_no_garbage_is_collected_while_graphs_are_captured(llama: Subject) -> None:
    """It may hold graphs of an earlier engine, and a graph that is destroyed meanwhile invalidates the capture."""
    collects: list[bool] = []

    class Capturer(CpuCapturer):
        def capture(self, work):
            collects.append(gc.isenabled())
            return super().capture(work)

    llama.world(make_runner=partial(with_graphs(1, 2), capturer=Capturer()))
    assert collects == [False] * (3 * 2 + len(MIXED))
    assert gc.isenabled()


def forbid_eager_steps(world) -> None:
    """Makes every launch fail that no graph holds."""
    holds = world.runner.graphs.holds

    def must_hold(batch) -> bool:
        assert holds(batch)
        return True

    world.runner.graphs.holds = must_hold


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(16,), (1, 2, 4, 8, 16), (1, 3)])
def test_padded_steps_yield_what_generate_yields(llama: Subject, window: int, sizes: tuple[int, ...]) -> None:
    """Sizes up to 3 leave most steps to the plain runner."""
    comparison = Comparison()
    world = llama.world(window=window, make_runner=with_graphs(*sizes), num_blocks=20, block_size=16)
    if sizes[-1] == 16:
        forbid_eager_steps(world)
    groups = submit(world, llama, temperature=0.0)
    world.run()
    for expected, group in zip(llama.greedy, groups, strict=True):
        comparison.check(expected, output(group), f"sizes {sizes}, window {window}")


@pytest.mark.parametrize("window", [1, 2])
def test_sampling_forks_stops_and_preemption_do_not_depend_on_graphs(llama: Subject, window: int) -> None:
    options = {
        "temperature": 0.8,
        "top_p": 0.9,
        "seed": 5,
        "n": 3,
        "presence_penalty": 0.5,
        "stop_token_ids": tuple(range(0, 200, 9)),
        "min_tokens": 3,
        "logprobs": 2,
    }
    worlds = [
        llama.world(window=window, num_blocks=20, block_size=8, **runner)
        for runner in ({}, {"make_runner": with_graphs(2, 8, 16)})
    ]
    plain, graphs = ([submit(world, llama, **options), world.run()][0] for world in worlds)
    for a, b in zip(plain, graphs, strict=True):
        for index in range(3):
            assert output(a, index) == output(b, index)
        for one, other in zip(a.sequences, b.sequences, strict=True):
            assert worlds[0].logprobs[one] == worlds[1].logprobs[other]
    assert worlds[1].scheduler.num_preemptions > 0


def test_the_void_slot_is_never_written(llama: Subject) -> None:
    world = llama.world(make_runner=with_graphs(16))
    state: DeviceState = world.runner.state
    before = state.ints[state.void_slot].clone()
    submit(world, llama, temperature=0.0)
    world.run()
    assert torch.equal(state.ints[state.void_slot], before)
    assert before[STOP_REASON] != 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_progress_is_one_line_and_only_on_a_terminal(llama: Subject, stream: io.StringIO, monkeypatch) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    llama.world(make_runner=with_graphs(1, 2, 4))
    shown = stream.getvalue()
    assert shown.count("\n") == isinstance(stream, Terminal)
    assert ("1/14, 512 tokens" in shown) == isinstance(stream, Terminal)


@pytest.mark.parametrize("max_num_batched_tokens", [3, 7, 24])
def test_chunks_of_prompts_among_decodes_are_graphs_too(llama: Subject, max_num_batched_tokens: int) -> None:
    """Twice, the second time from cached prefixes."""
    comparison = Comparison()
    world = llama.world(
        make_runner=with_graphs(1, 4, 16), num_blocks=40, block_size=8, max_num_batched_tokens=max_num_batched_tokens
    )
    forbid_eager_steps(world)
    for how in ("first", "cached"):
        groups = submit(world, llama, temperature=0.0)
        world.run()
        for expected, group in zip(llama.greedy, groups, strict=True):
            comparison.check(expected, output(group), f"steps of {max_num_batched_tokens} tokens, {how}")


def test_rare_stages_in_mixed_steps_are_sampled_without_a_graph(llama: Subject) -> None:
    worlds = [
        llama.world(max_num_batched_tokens=16, **runner) for runner in ({}, {"make_runner": with_graphs(2, 8, 16)})
    ]
    forbid_eager_steps(worlds[1])
    options = {
        "temperature": 0.7,
        "seed": 3,
        "logit_bias": {5: 2.5, 9: -100.0},
        "logprobs": 1,
        "frequency_penalty": 0.4,
    }
    answers = []
    for world in worlds:
        biased = submit(world, llama, **options)
        plain = submit(world, llama, temperature=0.0)
        world.run()
        answers.append([(output(group), world.logprobs.get(group.sequences[0])) for group in (*biased, *plain)])
    assert answers[0] == answers[1]


def test_reports_stay_where_no_graph_keeps_its_scratch(llama: Subject) -> None:
    """A report is copied while the next forward pass runs: it must not be allocated within a graph."""
    world = llama.world(make_runner=with_graphs(4, 16))
    places = [graphs.report.data_ptr() for graphs in world.runner.graphs._row_graphs]
    submit(world, llama, temperature=0.0)
    world.run()
    assert [graphs.report.data_ptr() for graphs in world.runner.graphs._row_graphs] == places
