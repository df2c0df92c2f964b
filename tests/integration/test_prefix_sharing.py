"""The plans of shared prefixes that a runner makes, step by step, against the block tables that attention gets.

They run on a CPU, whose attention does not read plans: answers cannot tell whether a plan is right, so it is compared.
"""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from model_world import CPU, MakeRunner
from pagewire_kernels.paged_attention import AttentionInputs, paged_attention
from pagewire_kernels.paged_attention.shared_prefixes import PlanLayout
from pagewire_shard.execution.device_state import DeviceState
from pagewire_shard.execution.gpu_runner import GraphRunner
from pagewire_shard.execution.graph_capture import CpuCapturer
from pagewire_shard.execution.graph_sizes import GraphSizes
from pagewire_shard.execution.host_transfer import CpuDownlink, CpuUplink
from pagewire_shard.execution.model_runner import ModelRunner
from pagewire_shard.execution.prefix_sharing import PrefixSharing
from pagewire_shard.execution.warm_up import warm_up
from plan_reader import read_plan
from reference_model import Comparison
from scheduling_world import output
from subject import NUM_TOKENS, Subject

BLOCK_SIZE = 8


def sharing_of(state: DeviceState) -> PrefixSharing:
    layout = PlanLayout(state.num_slots, rows_per_tile=4, num_shares=3, tile=BLOCK_SIZE)
    return PrefixSharing(layout, state, BLOCK_SIZE, bytes_per_token=64)


def with_sharing(model: Any, state: DeviceState, kv_caches: Any, block_size: int, *, graphs: bool) -> ModelRunner:
    transfers = {"uplink": CpuUplink(), "downlink": CpuDownlink(), "sharing": sharing_of(state)}
    if not graphs:
        return ModelRunner(model, state, kv_caches, block_size, **transfers)
    sizes = GraphSizes((1, 2, 4, 8, 16), ((24, 16), (64, 16), (512, 16)))
    return GraphRunner(model, state, kv_caches, block_size, capturer=CpuCapturer(), sizes=sizes, **transfers)


class Checker:
    """Stands for attention, which it calls."""

    def __init__(self) -> None:
        self.num_shared_keys = 0

    def __call__(self, inputs: AttentionInputs) -> Any:
        if inputs.shared is not None:
            self.check(inputs)
        return paged_attention(inputs)

    def check(self, inputs: AttentionInputs) -> None:
        shared = inputs.shared
        assert shared is not None
        num_seqs = len(inputs.seq_lens)
        num_decodes = inputs.num_decodes if inputs.max_query_len > 1 else num_seqs
        if inputs.row_counts is not None:
            num_decodes = int(inputs.row_counts[1])
        parts = (shared.shares, shared.items, shared.entries, shared.rows)
        pieces_of_rows, _ = read_plan(shared.layout, np.concatenate([part.numpy().ravel() for part in parts]))
        for row, pieces in enumerate(pieces_of_rows):
            end = 0
            for table, begin, piece_end in pieces:
                assert begin == end
                end = piece_end
                if row < num_seqs and inputs.seq_lens[row]:
                    blocks = slice(begin // BLOCK_SIZE, end // BLOCK_SIZE)
                    assert shared.block_tables[table, blocks].equal(inputs.block_tables[row, blocks])
            assert shared.rows[row, 0] == end
            if row >= num_decodes:
                assert not pieces
            elif inputs.seq_lens[row]:
                assert end < inputs.seq_lens[row]
                self.num_shared_keys += end


@pytest.fixture
def checker(monkeypatch: pytest.MonkeyPatch) -> Checker:
    checker = Checker()
    monkeypatch.setattr("pagewire_shard.layers.attention.paged_attention", checker)
    monkeypatch.setattr("pagewire_shard.execution.prefix_sharing.MIN_SAVED_BYTES", 0)
    monkeypatch.setattr("pagewire_kernels.paged_attention.shared_runs.MIN_SAVED_KEYS", 1)
    return checker


RUNNERS = pytest.mark.parametrize(
    "make_runner", [partial(with_sharing, graphs=graphs) for graphs in (True, False)], ids=["graphs", "no-graphs"]
)


@RUNNERS
@pytest.mark.parametrize("window", [1, 2, 3])
def test_cached_prefixes_forks_stops_and_preemption(
    llama: Subject, checker: Checker, make_runner: MakeRunner, window: int
) -> None:
    """Three rounds of prompts that begin alike, with several answers each, in a pool that is too small for them."""
    limits = {"num_blocks": 20, "block_size": BLOCK_SIZE, "max_num_batched_tokens": 64}
    worlds = [llama.world(window=window, **limits, **runner) for runner in ({}, {"make_runner": make_runner})]
    longest = max(llama.greedy, key=lambda expected: len(expected.prompt)).prompt
    options = {"temperature": 0.8, "seed": 5, "n": 3, "stop_token_ids": tuple(range(0, 200, 9)), "min_tokens": 14}
    answers: list[list[list[int]]] = []
    for world in worlds:
        answers.append([])
        for _ in range(3):
            prompts = [longest[:40] + longest[:i] for i in (1, 3, 9)] + [[*longest[:25], 5], [*longest[:33], 6]]
            groups = [world.submit(prompt, max_tokens=NUM_TOKENS, **options) for prompt in prompts]
            world.run()
            answers[-1] += [output(group, index) for group in groups for index in range(3)]
    assert answers[0] == answers[1]
    assert checker.num_shared_keys > 0
    assert worlds[1].scheduler.num_preemptions > 0


@RUNNERS
def test_requests_that_come_and_go_beside_others(llama: Subject, checker: Checker, make_runner: MakeRunner) -> None:
    """Rows change places, and slots change hands, while the others decode."""
    comparison = Comparison()
    world = llama.world(block_size=BLOCK_SIZE, max_num_seqs=6, max_num_batched_tokens=64, make_runner=make_runner)
    groups = []
    for wave in range(6):
        groups += [
            (e, world.submit(e.prompt, max_tokens=NUM_TOKENS, temperature=0.0)) for e in llama.greedy[wave % 3 :]
        ]
        for _ in range(5):
            world.step()
    world.run()
    for expected, group in groups:
        comparison.check(expected, output(group), "in waves")
    assert checker.num_shared_keys > 0


@RUNNERS
def test_nothing_is_shared_where_it_saves_little(
    llama: Subject, checker: Checker, make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pagewire_shard.execution.prefix_sharing.MIN_SAVED_BYTES", 1 << 30)
    world = llama.world(block_size=BLOCK_SIZE, make_runner=make_runner)
    for _ in range(2):
        for e in llama.greedy:
            world.submit(e.prompt, max_tokens=NUM_TOKENS, temperature=0.0, n=2)
        world.run()
    assert checker.num_shared_keys == 0


def test_a_runner_whose_sequences_have_one_block_warms_up(llama: Subject, checker: Checker) -> None:
    """The sequence that warms it up takes no more blocks than it needs, which is all that a table has room for."""
    state = DeviceState(2, BLOCK_SIZE, BLOCK_SIZE, CPU)
    caches = llama.model.spec.allocate_caches(1, BLOCK_SIZE, torch.float32, CPU)
    warm_up(with_sharing(llama.model, state, caches, BLOCK_SIZE, graphs=False), BLOCK_SIZE)
    assert checker.num_shared_keys == 0
