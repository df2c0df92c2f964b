"""What requests have in common is computed once: cached, in flight, or in one plan. A plan's budget counts what is."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pagewire_common.block_hash import PrefixHashes, max_cached_blocks
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_router.scheduling.sequence import SequenceGroup
from scheduling_world import VOCAB_SIZE, CountingRunner, World, expected_output, make_request, output
from subject import Subject


def tokens(number: int, seed: object) -> list[int]:
    return random.Random(str(seed)).choices(range(1, VOCAB_SIZE), k=number)


def limits(**changes: int) -> GroupLimits:
    values = {
        "num_blocks": 400,
        "block_size": 4,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 64,
        "max_model_len": 256,
    }
    return GroupLimits(**{**values, **changes})


def check_outputs(groups: list[SequenceGroup], max_model_len: int) -> None:
    for group in groups:
        assert output(group) == expected_output(group.request, 0, max_model_len, eos_share=0.0)


# The number of steps.


def shared_prefix() -> list[list[int]]:
    """256 requests with 2,048 tokens in common and 128 of their own."""
    prefix = tokens(2048, "prefix")
    return [prefix + tokens(128, i) for i in range(256)]


def tree_of_prefixes() -> list[list[int]]:
    """8 system prompts of 1,536 tokens, 4 conversations of 512 more under each, 8 requests of 64 more under each."""
    systems = [tokens(1536, i) for i in range(8)]
    stems = [system + tokens(512, (i, j)) for i, system in enumerate(systems) for j in range(4)]
    return [stem + tokens(64, (i, j)) for i, stem in enumerate(stems) for j in range(8)]


@pytest.mark.parametrize(
    ("prompts", "num_distinct", "num_steps"),
    [(shared_prefix, 2048 + 256 * 128, 5), (tree_of_prefixes, 8 * 1536 + 32 * 512 + 256 * 64, 6)],
)
@pytest.mark.parametrize("window", [1, 2])
def test_steps_are_as_many_as_the_distinct_tokens_fill(
    prompts: Callable[[], list[list[int]]], num_distinct: int, num_steps: int, window: int
) -> None:
    """Nothing is cached before. Each step computes 8,192 tokens, of which one for each row that decodes."""
    own_limits = limits(
        num_blocks=6000, block_size=64, max_num_seqs=256, max_num_batched_tokens=8192, max_model_len=4096
    )
    world = World(own_limits, window, eos_share=0.0, make_runner=CountingRunner)
    groups = [world.submit(make_request(prompt, max_tokens=8, eos=False)) for prompt in prompts()]
    for _ in range(num_steps):
        world.step()
    assert all(group.num_output_tokens for group in groups)
    assert set(world.ranks[0].runner.tokens_of_steps[: num_steps - 1]) == {8192}
    world.run()
    assert world.ranks[0].runner.num_computed_total == num_distinct + 256 * 7
    assert world.num_missed == 0


@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_prefix_longer_than_a_step_is_computed_once_and_nobody_starts_before_it_is_done(window: int) -> None:
    world = World(limits(max_num_batched_tokens=16), window, eos_share=0.0)
    prefix = tokens(90, "long")
    suffixes = [[1 + i % 5, 1 + i // 5, 1, 1, 1] for i in range(10)]
    groups = [world.submit(make_request(prefix + own, max_tokens=3, arrival_s=i)) for i, own in enumerate(suffixes)]
    world.run()
    check_outputs(groups, 256)
    # The prefix ends within a block, so that each request computes its last 2 tokens itself.
    assert world.ranks[0].runner.num_computed_total == 95 + 9 * 7 + 10 * 2


def test_requests_that_arrive_while_a_prefix_is_in_flight_share_it() -> None:
    world = World(limits(), window=3, eos_share=0.0)
    prefix = tokens(40, "p")
    groups = []
    for i in range(6):
        groups.append(world.submit(make_request([*prefix, *tokens(4, i)], max_tokens=9)))
        world.step()
    world.run()
    check_outputs(groups, 256)
    assert [group.num_cached_tokens for group in groups] == [0, *[40] * 5]


def test_a_resumed_request_is_charged_for_what_is_not_cached() -> None:
    """Preempted for want of blocks, or with its shard: its blocks are there when it comes again."""
    world = World(limits(max_num_batched_tokens=24), window=2, eos_share=0.0)
    groups = [world.submit(make_request(tokens(20, i), max_tokens=30, seed=i)) for i in range(4)]
    for _ in range(20):
        world.step()
    world.new_epoch()
    world.step()
    assert sum(group.is_running for group in groups) == 4, "four of more than 20 tokens start in one step of 24"
    world.run()
    check_outputs(groups, 256)


# Random trees.


@st.composite
def trees(draw: st.DrawFn) -> list[list[int]]:
    """Prompts along the paths of a tree of tokens."""
    stems: list[list[int]] = [[]]
    for _ in range(draw(st.integers(1, 5))):
        stems.append(draw(st.sampled_from(stems)) + tokens(draw(st.integers(1, 20)), draw(st.integers(0, 3))))
    suffixes = st.lists(st.integers(1, 5), min_size=1, max_size=5)
    return draw(st.lists(st.builds(lambda stem, own: stem + own, st.sampled_from(stems), suffixes), max_size=14))


def most_computed(prompts: list[list[int]], block_size: int) -> int:
    """Tokens to compute if each block that several prompts have in common is computed once."""
    shared: set[int] = set()
    num_own = 0
    for prompt in prompts:
        num_blocks = max_cached_blocks(len(prompt), block_size)
        shared.update(PrefixHashes(prompt, block_size).first(num_blocks)[:num_blocks])
        num_own += len(prompt) - num_blocks * block_size
    return len(shared) * block_size + num_own


@settings(max_examples=150, deadline=None)
@given(
    prompts=trees(),
    pauses=st.lists(st.integers(0, 2), min_size=14, max_size=14),
    window=st.integers(1, 4),
    block_size=st.integers(1, 5),
    max_num_batched_tokens=st.sampled_from([1, 3, 8, 30, 100]),
    max_num_seqs=st.sampled_from([1, 3, 16]),
)
def test_no_block_of_a_tree_of_prefixes_is_computed_twice(
    prompts: list[list[int]],
    pauses: list[int],
    window: int,
    block_size: int,
    max_num_batched_tokens: int,
    max_num_seqs: int,
) -> None:
    own_limits = limits(
        num_blocks=4000,
        block_size=block_size,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_seqs=max_num_seqs,
    )
    world = World(own_limits, window, eos_share=0.0, num_ranks=2)
    groups = []
    for prompt, pause in zip(prompts, pauses, strict=False):
        groups.append(world.submit(make_request(prompt, max_tokens=4, eos=False, arrival_s=world.now)))
        for _ in range(pause):
            world.step()
    world.run()
    check_outputs(groups, 256)
    world.check_whole()
    assert world.num_missed == 0
    assert world.ranks[0].runner.num_computed_total <= most_computed(prompts, block_size) + 3 * len(prompts)


# Wrong guesses.


@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_prefix_that_is_gone_is_computed_once_by_those_that_were_admitted_for_it(window: int) -> None:
    """The shard evicts it, and the router does not know. Alone each of them would compute 60 tokens of it."""
    world = World(limits(max_num_batched_tokens=40), window, eos_share=0.0)
    prefix = tokens(60, "gone")
    world.submit(make_request([*prefix, 1], max_tokens=1))
    world.run()
    world.lose_cache()
    before = world.ranks[0].runner.num_computed_total
    groups = [world.submit(make_request([*prefix, *tokens(4, i)], max_tokens=3, seed=i)) for i in range(12)]
    world.run()
    check_outputs(groups, 256)
    world.check_whole()
    assert world.num_missed > 0
    counts = world.scheduler.tokens
    assert counts.prompt_computed + counts.prompt_cached == 61 + 12 * 64
    assert counts.recomputed == 0
    assert sum(group.num_cached_tokens for group in groups) == counts.prompt_cached
    num_computed = world.ranks[0].runner.num_computed_total - before
    assert num_computed <= 64 + 12 * (4 + 2) + world.num_missed * (4 + window), num_computed


def test_a_guess_that_is_wrong_each_time_ends_no_request_and_delays_it_by_a_few_steps() -> None:
    """A shard that keeps nothing, and a router that is told the contrary before each plan."""
    world = World(limits(), window=2, eos_share=0.0)
    prompt = tokens(30, "never")
    groups = [world.submit(make_request([*prompt, i], max_tokens=2)) for i in (1, 2, 3)]
    num_steps = 0
    while not all(group.is_finished for group in groups):
        world.scheduler.prefixes.update(PrefixHashes(prompt, 4).first(7), ())
        world.lose_cache()
        world.step()
        num_steps += 1
    check_outputs(groups, 256)
    assert num_steps < 20


def test_a_hit_that_is_longer_than_guessed_leaves_the_rest_of_the_budget() -> None:
    world = World(limits(max_num_batched_tokens=40), window=1, eos_share=0.0)
    prompt = tokens(30, "warm")
    world.submit(make_request([*prompt, 1], max_tokens=1))
    world.run()
    world.scheduler.prefixes.clear()
    groups = [world.submit(make_request([*prompt, i], max_tokens=1)) for i in (2, 3)]
    world.step()
    assert [group.num_output_tokens for group in groups] == [1, 1]
    assert world.ranks[0].runner.tokens_of_steps[-1] == 2 * 3


# A real model.

COMMON, NUM_NEW = 37, 12


def prompts_of(subject: Subject) -> list[list[int]]:
    """Seven prompts that share 37 tokens, or those and 30 more; one is the shared part itself."""
    longest = max((expected.prompt for expected in subject.greedy), key=len)
    stem = longest[:COMMON]
    branch = [*stem, *longest[COMMON + 1 :], 3]
    own = [[5, 6, 7], [8], list(range(9, 30)), [5, 6, 8]]
    return [[*stem, *own[0]], [*stem, *own[1]], [*branch, *own[2]], [*branch, *own[3]], stem, [*branch, 2], branch]


def run_model(
    subject: Subject, *, shared: bool, pause: int = 0, cancel: int | None = None, **changes: int
) -> list[tuple[list[int], list[float], int]]:
    """Tokens, their log-probabilities and the cached tokens of each request that is not cancelled."""
    world = subject.world(block_size=8, **changes)
    groups = []
    for i, prompt in enumerate(prompts_of(subject)):
        salt = "" if shared else str(i)
        options = {"temperature": 0.7, "seed": i, "logprobs": 2, "cache_salt": salt}
        groups.append(world.submit(prompt, max_tokens=NUM_NEW, **options))
        for _ in range(pause):
            world.step()
    if cancel is not None:
        world.step()
        world.scheduler.end(groups[cancel])
    world.run()
    kept = [group for i, group in enumerate(groups) if i != cancel]
    return [
        (output(g), [entry.logprob for entry in world.logprobs[g.sequences[0]]], g.num_cached_tokens or 0) for g in kept
    ]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"pause": 1},
        {"pause": 3, "window": 1},
        {"max_num_batched_tokens": 24},
        {"max_num_batched_tokens": 24, "pause": 2},
        {"num_blocks": 22},
        {"cancel": 0},
        {"cancel": 2, "max_num_batched_tokens": 40},
    ],
    ids=[
        "one plan",
        "staggered",
        "window 1",
        "chunks",
        "chunks, staggered",
        "preempted",
        "cancelled",
        "cancelled chunk",
    ],
)
def test_a_model_yields_the_same_bits_whether_prefixes_are_shared_or_not(llama: Subject, how: dict[str, int]) -> None:
    alone, shared = (run_model(llama, shared=is_shared, **how) for is_shared in (False, True))
    for (own_tokens, own_logprobs, _), (tokens_, logprobs, _) in zip(alone, shared, strict=True):
        assert tokens_ == own_tokens
        assert logprobs == own_logprobs
    assert sum(cached for _, _, cached in shared) > 100
    if "num_blocks" not in how:
        assert sum(cached for _, _, cached in alone) == 0
