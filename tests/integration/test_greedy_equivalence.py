"""Scheduler, engine and model against transformers' generate: the same tokens, however the work is cut up."""

import pytest
from model_world import ModelWorld
from pagewire.v1 import inference_pb2
from pagewire_router.scheduling.sequence import SequenceGroup
from random_models import family_configs, random_prompts
from reference_model import Comparison, Expected
from scheduling_world import output
from subject import NUM_TOKENS, PROMPT_LENS, Subject, subject

BLOCK_SIZES = (1, 8, 16, 32)
CHUNKS = (1, 7, 512)
SAMPLING = (
    {"temperature": 0.9, "seed": 7},
    {"temperature": 0.9, "top_p": 0.8, "seed": 8, "n": 2},
    {"temperature": 0.9, "top_k": 12, "min_p": 0.02, "seed": 9 - 2**63},
    {"temperature": 0.9, "top_p": 0.9, "presence_penalty": 0.7, "frequency_penalty": 0.3, "seed": 10, "n": 2},
    {"temperature": 0.9, "top_k": 40, "repetition_penalty": 1.3, "seed": 11},
    {"temperature": 0.0, "repetition_penalty": 1.2, "frequency_penalty": 0.5},
)


@pytest.fixture(scope="module", params=family_configs())
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return Comparison()


def submit_greedy(world: ModelWorld, subject: Subject) -> list[SequenceGroup]:
    return [world.submit(e.prompt, temperature=0.0, max_tokens=NUM_TOKENS) for e in subject.greedy]


def check_greedy(comparison: Comparison, subject: Subject, groups: list[SequenceGroup], how: str) -> None:
    for expected, group in zip(subject.greedy, groups, strict=True):
        what = f"{subject.name}, prompt of {len(expected.prompt)}, {how}"
        comparison.check(expected, output(group), what)
        assert group.sequences[0].finish_reason == inference_pb2.FINISH_REASON_LENGTH


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_batch_yields_what_generate_yields(
    family: Subject, comparison: Comparison, block_size: int, chunk: int
) -> None:
    world = family.world(block_size=block_size, max_num_batched_tokens=chunk)
    groups = submit_greedy(world, family)
    world.run()
    check_greedy(comparison, family, groups, f"blocks of {block_size}, chunks of {chunk}")


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_a_request_alone_yields_the_same_and_again_from_a_cached_prefix(
    family: Subject, comparison: Comparison, block_size: int
) -> None:
    world = family.world(block_size=block_size)
    for how in ("alone", "alone and cached"):
        groups = []
        for expected in family.greedy:
            groups.append(world.submit(expected.prompt, temperature=0.0, max_tokens=NUM_TOKENS))
            world.run()
        check_greedy(comparison, family, groups, f"blocks of {block_size}, {how}")
    for group in groups:
        # All full blocks but the one of the last token, which is always computed.
        assert group.num_cached_tokens == (group.num_prompt_tokens - 1) // block_size * block_size


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("chunk", [7, 512])
def test_a_pool_that_preempts_all_the_time_changes_nothing(
    family: Subject, comparison: Comparison, block_size: int, chunk: int
) -> None:
    alone = -(-(max(PROMPT_LENS) + NUM_TOKENS) // block_size)
    world = family.world(block_size=block_size, max_num_batched_tokens=chunk, num_blocks=alone)
    groups = submit_greedy(world, family) + submit_greedy(world, family)
    world.run()
    half = len(family.greedy)
    for part in (groups[:half], groups[half:]):
        check_greedy(comparison, family, part, f"{alone} blocks of {block_size}, chunks of {chunk}")
    assert world.scheduler.num_preemptions > 0


@pytest.mark.parametrize("window", [1, 2, 3, 4])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_the_window_of_plans_in_flight_changes_nothing(
    llama: Subject, comparison: Comparison, window: int, chunk: int
) -> None:
    world = llama.world(window=window, block_size=8, num_blocks=13, max_num_batched_tokens=chunk)
    for how in ("first", "cached"):
        groups = submit_greedy(world, llama)
        world.run()
        check_greedy(comparison, llama, groups, f"window of {window}, chunks of {chunk}, {how}")
    # With one token in a step hardly two requests run at once.
    assert world.scheduler.num_preemptions > 0 or chunk == 1


@pytest.fixture(scope="module")
def sampled(llama: Subject) -> list[list[Expected]]:
    """For each of SAMPLING, what its sequences are."""
    world = llama.world()
    prompts = random_prompts((1, 9, 16, 21, 40, 5), seed=2)
    groups = [world.submit(p, max_tokens=NUM_TOKENS, **o) for p, o in zip(prompts, SAMPLING, strict=True)]
    return [[llama.reference.answer(group.request, s.index) for s in group.sequences] for group in groups]


def submit_sampled(world: ModelWorld, sampled: list[list[Expected]]) -> list[SequenceGroup]:
    return [
        world.submit(expected[0].prompt, max_tokens=NUM_TOKENS, **options)
        for expected, options in zip(sampled, SAMPLING, strict=True)
    ]


def check_sampled(comparison: Comparison, sampled: list[list[Expected]], groups: list[SequenceGroup], how: str) -> None:
    for sequences, group in zip(sampled, groups, strict=True):
        for expected in sequences:
            what = f"seed {expected.params.seed}, sequence {expected.index}, {how}"
            comparison.check(expected, output(group, expected.index), what)


def test_sampled_output_is_the_same_alone_and_from_a_cached_prefix(
    llama: Subject, comparison: Comparison, sampled: list[list[Expected]]
) -> None:
    world = llama.world(block_size=8)
    for how in ("alone", "cached"):
        groups = []
        for expected, options in zip(sampled, SAMPLING, strict=True):
            groups.append(world.submit(expected[0].prompt, max_tokens=NUM_TOKENS, **options))
            world.run()
        check_sampled(comparison, sampled, groups, how)
    assert [group.num_cached_tokens for group in groups] == [0, 8, 8, 16, 32, 0]


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("chunk", CHUNKS)
def test_sampled_output_is_the_same_in_any_batch(
    llama: Subject, comparison: Comparison, sampled: list[list[Expected]], block_size: int, chunk: int
) -> None:
    world = llama.world(block_size=block_size, max_num_batched_tokens=chunk)
    noise = [world.submit(prompt, seed=i, max_tokens=11) for i, prompt in enumerate(random_prompts((3, 30), seed=3))]
    groups = submit_sampled(world, sampled)
    world.run()
    check_sampled(comparison, sampled, groups, f"blocks of {block_size}, chunks of {chunk}")
    assert all(group.is_finished for group in noise)


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize(("block_size", "num_blocks"), [(1, 64), (8, 10), (16, 5)])
def test_sampled_output_is_the_same_with_preemption(
    llama: Subject,
    comparison: Comparison,
    sampled: list[list[Expected]],
    window: int,
    block_size: int,
    num_blocks: int,
) -> None:
    world = llama.world(block_size=block_size, num_blocks=num_blocks, window=window)
    groups = submit_sampled(world, sampled)
    world.run()
    check_sampled(comparison, sampled, groups, f"{num_blocks} blocks of {block_size}, window of {window}")
    assert world.scheduler.num_preemptions > 0


def test_hardly_any_choice_was_a_near_tie(comparison: Comparison, record_property) -> None:
    """Last in the file: counts what the others accepted."""
    record_property("num_tokens_compared", comparison.num_tokens)
    record_property("num_near_ties_accepted", comparison.num_near_ties)
    print(f"{comparison.num_near_ties} near ties accepted among {comparison.num_tokens} tokens", *comparison.where)
    assert comparison.num_near_ties <= comparison.num_tokens // 2000
