"""Decode steps of captured sizes, padded with the void slot, on a CPU: what is captured on a GPU is called here."""

import gc
import io
from functools import partial

import pytest
import torch
from model_world import MakeRunner
from pagewire_router.scheduling.sequence import SequenceGroup
from pagewire_shard.execution.decode_graphs import CpuCapturer, graph_sizes
from pagewire_shard.execution.device_state import STOP_REASON, DeviceState
from pagewire_shard.execution.gpu_runner import GraphRunner
from pagewire_shard.execution.host_transfer import CpuDownlink, CpuUplink
from reference_model import Comparison
from scheduling_world import output
from subject import NUM_TOKENS, Subject


def with_graphs(*sizes: int) -> MakeRunner:
    return partial(GraphRunner, uplink=CpuUplink(), downlink=CpuDownlink(), capturer=CpuCapturer(), sizes=sizes)


def submit(world, subject: Subject, **options: object) -> list[SequenceGroup]:
    return [world.submit(e.prompt, max_tokens=NUM_TOKENS, **options) for e in subject.greedy]


@pytest.mark.parametrize(("max_num_seqs", "sizes"), [(1, (1,)), (3, (1, 2, 3)), (20, (1, 2, 4, 8, 16, 20))])
def test_the_ladder_ends_with_all_sequences(max_num_seqs: int, sizes: tuple[int, ...]) -> None:
    assert graph_sizes(max_num_seqs) == sizes


def test_the_ladder_ends_at_512() -> None:
    assert graph_sizes(512) == graph_sizes(10_000)
    assert graph_sizes(512)[-1] == 512


def test_no_garbage_is_collected_while_graphs_are_captured(llama: Subject) -> None:
    """It may hold graphs of an earlier engine, and a graph that is destroyed meanwhile invalidates the capture."""
    collects: list[bool] = []

    class Capturer(CpuCapturer):
        def capture(self, work):
            collects.append(gc.isenabled())
            return super().capture(work)

    llama.world(make_runner=partial(with_graphs(1, 2), capturer=Capturer()))
    assert collects == [False] * 4
    assert gc.isenabled()


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(16,), (1, 2, 4, 8, 16), (1, 3)])
def test_padded_decode_steps_yield_what_generate_yields(llama: Subject, window: int, sizes: tuple[int, ...]) -> None:
    """Sizes up to 3 leave most steps to the plain runner."""
    comparison = Comparison()
    world = llama.world(window=window, make_runner=with_graphs(*sizes), num_blocks=20, block_size=16)
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
    assert ("1/3, batch size 4" in shown) == isinstance(stream, Terminal)


def test_reports_stay_where_no_graph_keeps_its_scratch(llama: Subject) -> None:
    """A report is copied while the next forward pass runs: it must not be allocated within a graph."""
    world = llama.world(make_runner=with_graphs(4, 16))
    places = [graph.outputs.report.data_ptr() for graph in world.runner._graphs._graphs]
    submit(world, llama, temperature=0.0)
    world.run()
    assert [graph.outputs.report.data_ptr() for graph in world.runner._graphs._graphs] == places
