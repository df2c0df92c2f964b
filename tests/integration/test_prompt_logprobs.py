"""Log-probabilities of prompts, compared with the log-softmax of a transformers model."""

import pytest
import torch
from model_world import ModelWorld
from pagewire_router.scheduling.sequence import SequenceGroup
from pagewire_shard.execution.gpu_runner import GraphRunner
from pagewire_shard.execution.graph_capture import CpuCapturer
from pagewire_shard.execution.graph_sizes import GraphSizes
from pagewire_shard.execution.host_transfer import CpuDownlink, CpuUplink
from pagewire_shard.execution.model_runner import ModelRunner
from pagewire_shard.sampling import prompt_scores
from prompt_scoring import check_prompt_scores
from random_models import random_prompts
from scheduling_world import output
from subject import Subject

GREEDY = {"temperature": 0.0, "max_tokens": 8}


def with_graphs(*args: object) -> ModelRunner:
    sizes = GraphSizes((1, 2, 4, 8, 16), ((24, 16), (64, 16), (512, 16)))
    return GraphRunner(*args, CpuUplink(), CpuDownlink(), CpuCapturer(), sizes)  # type: ignore[arg-type]


def submit(world: ModelWorld, subject: Subject, **options: object) -> list[SequenceGroup]:
    nums = (0, 1, 5, 20, 3, 2)
    return [
        world.submit(e.prompt, prompt_logprobs=num, **GREEDY, **options)
        for e, num in zip(subject.greedy, nums, strict=True)
    ]


@pytest.mark.parametrize("make_runner", [ModelRunner, with_graphs])
@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize(("block_size", "max_num_batched_tokens"), [(1, 24), (8, 17), (16, 512)])
def test_they_are_the_reference_models_own(
    llama: Subject, window: int, block_size: int, max_num_batched_tokens: int, make_runner: type[ModelRunner]
) -> None:
    """Whole or in chunks, and before, beside and after requests that cache the same prompts."""
    world = llama.world(
        window=window,
        block_size=block_size,
        max_num_batched_tokens=max_num_batched_tokens,
        make_runner=make_runner,
    )
    for _ in range(2):
        groups = submit(world, llama)
        beside = [world.submit(e.prompt, **GREEDY) for e in llama.greedy]
        world.run()
        for expected, group, other in zip(llama.greedy, groups, beside, strict=True):
            check_prompt_scores(llama, world, group)
            assert output(group) == output(other) == expected.tokens[:8]
            assert group.num_cached_tokens == 0
            assert other not in world.prompt_scores
    assert beside[-1].num_cached_tokens > 0


@pytest.mark.parametrize("window", [1, 2, 4])
def test_no_position_is_lost_or_comes_twice_when_requests_are_preempted(llama: Subject, window: int) -> None:
    world = llama.world(window=window, block_size=8, num_blocks=16, max_num_batched_tokens=11)
    runs = [world.submit(e.prompt[:8], temperature=0.0, max_tokens=60, priority=-1) for e in llama.greedy[2:4]]
    groups = submit(world, llama)
    world.run()
    for group in groups:
        check_prompt_scores(llama, world, group)
    assert world.scheduler.num_preemptions > 0
    assert any(len(world.prompt_scores[group]) > 1 for group in groups if group in world.prompt_scores)
    assert all(len(output(group)) == 60 for group in runs)


@pytest.mark.parametrize("steps", range(1, 9))
@pytest.mark.parametrize("block_size", [1, 8])
def test_what_was_received_before_the_shards_were_lost_is_not_computed_again(
    llama: Subject, steps: int, block_size: int
) -> None:
    world = llama.world(block_size=block_size, max_num_batched_tokens=12)
    expected = llama.greedy[-1]
    group = world.submit(expected.prompt, prompt_logprobs=2, **GREEDY)
    for _ in range(steps):
        world.step()
    num_known = sum(len(scores.logprobs) for scores in world.prompt_scores[group])
    world.new_epoch()
    num_computed = world.scheduler.tokens.recomputed
    world.run()
    check_prompt_scores(llama, world, group)
    assert output(group) == expected.tokens[:8]
    assert num_known == min(12 * steps, len(expected.prompt) - 1)
    num_recomputed = world.scheduler.tokens.recomputed - num_computed
    assert num_recomputed <= len(group.sequences[0].token_ids) - num_known // block_size * block_size


@pytest.mark.parametrize("n", [2, 5])
def test_several_sequences_of_one_prompt_yield_them_once(llama: Subject, n: int) -> None:
    world = llama.world(block_size=8, max_num_batched_tokens=20)
    prompt = llama.greedy[-1].prompt
    group = world.submit(prompt, prompt_logprobs=3, n=n, seed=5, max_tokens=6)
    world.run()
    check_prompt_scores(llama, world, group)
    for sequence in group.sequences:
        assert output(group, sequence.index) == llama.reference.answer(group.request, sequence.index).tokens


def test_a_prompt_of_one_token_has_none(llama: Subject) -> None:
    world = llama.world()
    group = world.submit([5], prompt_logprobs=3, **GREEDY)
    world.run()
    assert group not in world.prompt_scores
    assert len(output(group)) == 8


@pytest.mark.parametrize("make_runner", [ModelRunner, with_graphs])
def test_logits_exist_for_a_bounded_number_of_positions_at_a_time(
    llama: Subject, make_runner: type[ModelRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    largest, compute_logits = [], type(llama.model).compute_logits

    def recording(*args: object, **options: object) -> torch.Tensor:
        logits = compute_logits(*args, **options)  # type: ignore[arg-type]
        largest.append(logits.shape[0])
        return logits

    monkeypatch.setattr(type(llama.model), "compute_logits", recording)
    monkeypatch.setattr(prompt_scores, "MAX_TOP_ENTRIES", 40)
    world = llama.world(max_num_batched_tokens=512, make_runner=make_runner)
    groups = [
        world.submit(prompt, prompt_logprobs=num, **GREEDY)
        for prompt, num in zip(random_prompts((150, 150, 150, 60)), (0, 0, 0, 20), strict=True)
    ]
    world.run()
    assert max(largest) == prompt_scores.MAX_LOGITS_ROWS == 256
    for group in groups:
        check_prompt_scores(llama, world, group)


def test_a_plan_brings_a_bounded_number_of_them(llama: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request for very many of them gets shorter chunks; others in the same plan do not."""
    monkeypatch.setattr("pagewire_router.scheduling.plans.MAX_PROMPT_SCORES", 60)
    world = llama.world(max_num_batched_tokens=512)
    wide = world.submit(llama.greedy[-1].prompt, prompt_logprobs=19, **GREEDY)
    plain = world.submit(llama.greedy[-2].prompt, **GREEDY)
    world.step()
    assert [len(scores.logprobs) for scores in world.prompt_scores[wide]] == [3]
    assert plain.num_cached_tokens == 0
    world.run()
    check_prompt_scores(llama, world, wide)
    assert all(len(scores.logprobs) <= 3 for scores in world.prompt_scores[wide])
    assert output(wide) == llama.greedy[-1].tokens[:8]
    assert output(plain) == llama.greedy[-2].tokens[:8]
