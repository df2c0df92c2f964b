"""Beam search by scheduler, engine and a real model: what transformers finds, whatever else runs or is short."""

from functools import partial
from pathlib import Path

import pytest
from beam_reference import Found, Search, check_equal, search
from model_world import CPU
from pagewire_router.scheduling.block_ledger import num_blocks_of_group
from pagewire_router.scheduling.scheduler import Scheduler
from pagewire_router.scheduling.sequence import SequenceGroup
from pagewire_shard.execution.gpu_runner import GraphRunner
from pagewire_shard.execution.graph_capture import CpuCapturer
from pagewire_shard.execution.graph_sizes import GraphSizes
from pagewire_shard.execution.host_transfer import CpuDownlink, CpuUplink
from pagewire_shard.loading.model_loader import load_model
from random_models import VOCAB_SIZE, family_configs, random_model, random_prompts
from reference_model import ReferenceModel
from subject import Subject

PROMPTS = random_prompts((5, 33, 16))
LIKELY = tuple(range(0, VOCAB_SIZE, 6))
"""Tokens that end a beam, so many that one of them does soon."""


def submit(world, subject: Subject, prompt: list[int], wanted: Search, **options: object) -> SequenceGroup:
    return world.submit(prompt, eos_token_ids=wanted.eos_token_ids, **wanted.options(VOCAB_SIZE), **options)


def expected(subject: Subject, prompt: list[int], wanted: Search) -> list[Found]:
    return search(subject.reference.model, prompt, wanted)


SEARCHES = {
    "greedy": Search(1, eos_token_ids=LIKELY),
    "two, no end": Search(2, num_return_sequences=2),
    "four, likely end": Search(4, num_return_sequences=4, eos_token_ids=LIKELY, early_stopping=True),
    "five, long preferred": Search(5, length_penalty=2.0, early_stopping="never", eos_token_ids=(7, 8)),
    "eight, not too short": Search(8, num_return_sequences=3, min_new_tokens=6, eos_token_ids=LIKELY),
    "thirty-two": Search(32, max_new_tokens=6, num_return_sequences=32, eos_token_ids=(3,)),
}


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("block_size", [4, 16])
def test_beams_are_those_of_transformers(llama: Subject, name: str, block_size: int) -> None:
    wanted = SEARCHES[name]
    world = llama.world(block_size=block_size, max_num_seqs=40, window=2)
    groups = [submit(world, llama, prompt, wanted) for prompt in PROMPTS]
    world.run()
    for prompt, group in zip(PROMPTS, groups, strict=True):
        hypotheses = group.beams.search.hypotheses[: wanted.num_return_sequences]
        check_equal(hypotheses, expected(llama, prompt, wanted), wanted)


@pytest.mark.parametrize("family", ["gpt2", "mistral", "qwen3", "opt"])
def test_beams_of_other_families_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    """Learned positions, a sliding window, norms of queries and keys: what a fork may get wrong."""
    model = random_model(family_configs()[family])
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, device=CPU, dtype="float32").model
    other = Subject(family, ReferenceModel(model), loaded, [])
    wanted = Search(6, max_new_tokens=20, num_return_sequences=6, eos_token_ids=(3, 4, 5), early_stopping="never")
    world = other.world(block_size=4)
    groups = [submit(world, other, prompt, wanted) for prompt in PROMPTS[:2]]
    world.run()
    for prompt, group in zip(PROMPTS, groups, strict=False):
        check_equal(group.beams.search.hypotheses, expected(other, prompt, wanted), family)


def test_beams_that_run_beside_sampled_sequences_are_the_same_in_graphs(llama: Subject) -> None:
    """Rows that sample, that are scored and that only prefill, in one step; sizes that are padded."""
    sizes = GraphSizes((1, 4, 16), ((8, 8), (24, 16), (64, 16), (512, 16)))
    graphs = partial(GraphRunner, uplink=CpuUplink(), downlink=CpuDownlink(), capturer=CpuCapturer(), sizes=sizes)
    wanted = Search(5, num_return_sequences=5, eos_token_ids=LIKELY, min_new_tokens=2)
    world = llama.world(make_runner=graphs, max_num_batched_tokens=24)
    groups = []
    for prompt, greedy in zip(PROMPTS, llama.greedy, strict=False):
        world.submit(greedy.prompt, temperature=0.0, max_tokens=15, logprobs=2)
        groups.append(submit(world, llama, prompt, wanted))
    world.run()
    for prompt, group in zip(PROMPTS, groups, strict=True):
        check_equal(group.beams.search.hypotheses, expected(llama, prompt, wanted), "graphs")


def held_blocks(world) -> int:
    return world.engine.pool.num_blocks - world.engine.pool.num_free


def distinct_blocks(group: SequenceGroup, block_size: int) -> int:
    """Blocks of a request's beams if every one that two of them have in common is there once."""
    blocks = {
        (tuple(beam.token_ids[: i + 1]) if len(beam.token_ids) > i else (tuple(beam.token_ids), beam.index))
        for beam in group.sequences
        for i in range(block_size - 1, len(beam.token_ids) + block_size - 1, block_size)
    }
    return len(blocks)


@pytest.mark.parametrize("block_size", [2, 4])
def test_beams_share_every_block_that_they_have_in_common(llama: Subject, block_size: int) -> None:
    """After each step the pool holds the blocks of the beams' tree and no other."""
    wanted = Search(6, max_new_tokens=20, num_return_sequences=6)
    world = llama.world(block_size=block_size, window=1)
    group = submit(world, llama, PROMPTS[1], wanted)
    num_shared = 0
    while world.step():
        if len(group.sequences) == 6 and not group.is_finished:
            expected_blocks = distinct_blocks(group, block_size)
            # A plan that forks has been applied, and the beams that it released hold nothing.
            assert held_blocks(world) == expected_blocks
            apart = num_blocks_of_group([len(beam.token_ids) for beam in group.sequences], 33, block_size)
            num_shared += apart - expected_blocks
            assert world.scheduler._residents.ledger.available <= world.engine.pool.num_free
    assert num_shared > 0, "the beams have more in common than the prompt"
    assert held_blocks(world) == 0


def smallest_pool(prompt: list[int], wanted: Search, block_size: int) -> int:
    lengths = [len(prompt) + wanted.max_new_tokens] * wanted.num_beams
    return num_blocks_of_group(lengths, len(prompt), block_size)


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("block_size", [1, 3, 4])
def test_beams_are_preempted_and_resumed_whole_in_a_pool_for_one(
    llama: Subject, window: int, block_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Search(4, num_return_sequences=4, eos_token_ids=LIKELY, early_stopping="never")
    num_blocks = max(smallest_pool(prompt, wanted, block_size) for prompt in PROMPTS)
    world = llama.world(window=window, block_size=block_size, num_blocks=num_blocks)
    preempted: list[SequenceGroup] = []
    preempt = Scheduler._preempt

    def check_whole(scheduler: Scheduler, group: SequenceGroup) -> None:
        preempt(scheduler, group)
        preempted.append(group)
        if group.beams is not None:
            assert len({len(beam.token_ids) for beam in group.sequences}) == 1
            assert not group.is_running

    monkeypatch.setattr(Scheduler, "_preempt", check_whole)
    groups = [submit(world, llama, prompt, wanted) for prompt in PROMPTS]
    # One that comes later and is more urgent takes blocks of beams that run.
    for _ in range(6):
        world.step()
    urgent = [world.submit(greedy.prompt, max_tokens=20, temperature=0.0, priority=-1) for greedy in llama.greedy[:5]]
    world.run()
    for prompt, group in zip(PROMPTS, groups, strict=True):
        check_equal(group.beams.search.hypotheses, expected(llama, prompt, wanted), f"window {window}")
    assert all(group.is_finished for group in urgent)
    assert any(group.beams is not None for group in preempted)
