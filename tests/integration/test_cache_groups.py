"""Models of which most layers have a sliding window: what slid out is given back, and answers stay the same."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import transformers
from cluster import shards_and_router
from model_world import CPU, ModelWorld
from pagewire import Client, SamplingParams
from pagewire_common.cache_groups import CacheGroup, table_windows
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_shard.loading.model_loader import load_model
from random_models import MAX_LEN, VOCAB_SIZE, random_model, random_prompts, write_model
from reference_model import Comparison, Expected, ReferenceModel
from scheduling_world import make_request, output
from subject import NUM_TOKENS, PROMPT_LENS, Subject, subject

WINDOW = 11
GROUPS = (CacheGroup(0, 1), CacheGroup(WINDOW, 5))
"""Of six layers the last attends to all tokens; a block of the pool has room for one layer."""
GEMMA4_GROUPS = (CacheGroup(0, 1), CacheGroup(WINDOW, 2))
"""Of four layers that have keys and values, three have the window."""


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    directory = tmp_path_factory.mktemp("gemma3")
    config = transformers.Gemma3TextConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=MAX_LEN,
        sliding_window=WINDOW,
    )
    model = random_model(config)
    model.save_pretrained(directory)
    reference = ReferenceModel(model)
    greedy = [reference.generate(prompt, NUM_TOKENS) for prompt in random_prompts(PROMPT_LENS)]
    return Subject("gemma3", reference, load_model(Path(directory), device=CPU, dtype="float32").model, greedy)


@pytest.fixture(scope="module")
def gemma4(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Heads of layers without a window are twice as large, so that a block has room for two layers with one."""
    directory = tmp_path_factory.mktemp("gemma4")
    config = transformers.Gemma4TextConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        global_head_dim=32,
        max_position_embeddings=MAX_LEN,
        sliding_window=WINDOW,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=VOCAB_SIZE,
        layer_types=["sliding_attention"] * 3 + ["full_attention", "sliding_attention", "full_attention"],
        num_kv_shared_layers=2,
    )
    model = random_model(config)
    model.save_pretrained(directory)
    reference = ReferenceModel(model)
    greedy = [reference.generate(prompt, NUM_TOKENS) for prompt in random_prompts(PROMPT_LENS)]
    return Subject("gemma4", reference, load_model(Path(directory), device=CPU, dtype="float32").model, greedy)


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Every layer has the window."""
    return subject("mistral", tmp_path_factory.mktemp("mistral"))


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return Comparison()


def submit(world: ModelWorld, subject: Subject, **options: object) -> list:
    return [world.submit(e.prompt, temperature=0.0, max_tokens=NUM_TOKENS, **options) for e in subject.greedy]


def check(comparison: Comparison, expected: list[Expected], groups: list, how: str) -> None:
    for one, group in zip(expected, groups, strict=True):
        for sequence in group.sequences:
            comparison.check(one, output(group, sequence.index), f"prompt of {len(one.prompt)}, {how}")


def alone(block_size: int, chunk: int, n: int = 1, groups: tuple[CacheGroup, ...] = GROUPS) -> int:
    """Blocks for the longest request alone."""
    limits = GroupLimits(0, block_size, 16, chunk, MAX_LEN, groups)
    return limits.num_blocks_alone(make_request([1] * max(PROMPT_LENS), max_tokens=NUM_TOKENS, n=n))


@pytest.mark.parametrize("block_size", [3, 16])
@pytest.mark.parametrize("chunk", [7, 512])
def test_a_batch_yields_what_generate_yields_and_again_from_cached_prefixes(
    gemma3: Subject, comparison: Comparison, block_size: int, chunk: int
) -> None:
    world = gemma3.world(block_size=block_size, max_num_batched_tokens=chunk, num_blocks=2000, groups=GROUPS)
    for how in ("first", "cached"):
        groups = submit(world, gemma3)
        world.run()
        check(comparison, gemma3.greedy, groups, f"{how}, blocks of {block_size}, chunks of {chunk}")
    # A prefix far beyond the window is found whole: all its blocks where all are kept, the last ones elsewhere.
    assert [group.num_cached_tokens for group in groups] == [(n - 1) // block_size * block_size for n in PROMPT_LENS]


@pytest.mark.parametrize("chunk", [7, 512])
def test_a_pool_that_preempts_all_the_time_changes_nothing(gemma3: Subject, comparison: Comparison, chunk: int) -> None:
    world = gemma3.world(block_size=4, max_num_batched_tokens=chunk, num_blocks=alone(4, chunk), groups=GROUPS)
    groups = submit(world, gemma3) + submit(world, gemma3)
    world.run()
    check(comparison, gemma3.greedy * 2, groups, f"preempted, chunks of {chunk}")
    assert world.scheduler.num_preemptions > 0


@pytest.mark.parametrize("num_blocks", [500, 20])
def test_a_model_of_windows_alone_yields_what_generate_yields(
    mistral: Subject, comparison: Comparison, num_blocks: int
) -> None:
    """The small pool holds less than half of the longest sequence."""
    groups = (CacheGroup(WINDOW, 1),)
    world = mistral.world(block_size=2, max_num_batched_tokens=7, num_blocks=num_blocks, groups=groups)
    for how in ("first", "cached"):
        requests = submit(world, mistral)
        world.run()
        check(comparison, mistral.greedy, requests, f"windows alone, {how}, {num_blocks} blocks")
    if num_blocks == 500:
        assert [request.num_cached_tokens for request in requests] == [(n - 1) // 2 * 2 for n in PROMPT_LENS]


@pytest.mark.parametrize("num_blocks", [500, None])
def test_parallel_samples_are_forked_from_a_prompt_longer_than_the_window(
    gemma3: Subject, comparison: Comparison, num_blocks: int | None
) -> None:
    num_blocks = num_blocks or alone(4, 16, n=2)
    world = gemma3.world(block_size=4, max_num_batched_tokens=16, num_blocks=num_blocks, groups=GROUPS, window=3)
    groups = submit(world, gemma3, n=2)
    world.run()
    check(comparison, gemma3.greedy, groups, f"n=2, {num_blocks} blocks")


@pytest.mark.parametrize("num_blocks", [pytest.param(500, marks=pytest.mark.slow), None])
def test_layers_whose_caches_differ_in_shape_yield_what_generate_yields(
    gemma4: Subject, comparison: Comparison, num_blocks: int | None
) -> None:
    """With copies of blocks that parallel samples write to, and in a pool that preempts."""
    small = alone(4, 16, n=2, groups=GEMMA4_GROUPS)
    world = gemma4.world(block_size=4, max_num_batched_tokens=16, num_blocks=num_blocks or small, groups=GEMMA4_GROUPS)
    for how in ("first", "cached"):
        groups = submit(world, gemma4, n=2)
        world.run()
        check(comparison, gemma4.greedy, groups, f"caches of two shapes, {how}, {num_blocks} blocks")
    assert (world.scheduler.num_preemptions > 0) == (num_blocks is None)


def test_blocks_that_slid_out_of_layers_with_smaller_caches_are_free(gemma4: Subject) -> None:
    world = gemma4.world(block_size=4, num_blocks=1000, groups=GEMMA4_GROUPS)
    [prompt] = random_prompts((100,), seed=5)
    world.submit(prompt, temperature=0.0, max_tokens=40)
    for _ in range(20):
        world.step()
    num_tokens = world.engine._sequences[1].num_computed_tokens
    assert num_tokens > 110
    assert 1000 - world.engine.pool.num_free <= -(-num_tokens // 4) + 2 * (-(-WINDOW // 4) + 1)
    world.run()


def test_blocks_that_slid_out_are_free_while_the_sequence_runs(gemma3: Subject) -> None:
    world = gemma3.world(block_size=4, num_blocks=1000, groups=GROUPS)
    [prompt] = random_prompts((100,), seed=5)
    world.submit(prompt, temperature=0.0, max_tokens=40)
    for _ in range(20):
        world.step()
    num_tokens = world.engine._sequences[1].num_computed_tokens
    assert num_tokens > 110
    num_held = 1000 - world.engine.pool.num_free
    most = -(-num_tokens // 4) + 5 * (-(-WINDOW // 4) + 1)
    assert most - 5 <= num_held <= most
    world.run()


def test_hardly_any_choice_was_a_near_tie(comparison: Comparison) -> None:
    """Last of those that compare: counts what they accepted."""
    assert comparison.num_near_ties <= comparison.num_tokens // 1000


def test_a_mixture_of_windows_is_laid_out_in_blocks_of_one_size(gemma3: Subject) -> None:
    assert table_windows(GROUPS) == (0, *[WINDOW] * 5)
    assert gemma3.model.layer_tables == (1, 2, 3, 4, 5, 0)


@pytest.mark.parametrize(("window", "share"), [(512, 0.25), pytest.param(1024, 0.275, marks=pytest.mark.slow)])
def test_a_long_context_takes_little_more_than_its_share_through_the_service(
    tmp_path: Path, window: int, share: float
) -> None:
    """Five layers with a window for one without, at 8,192 tokens.

    A sixth of the layers keeps all tokens, the others the window: with 512 tokens that is 22 % of what full attention
    takes. With 1,024 it is 27 % at this length, and less than a quarter from 10,240 tokens on.
    """
    num_tokens, block_size = 8192, 16
    config = transformers.Gemma3TextConfig(
        vocab_size=400,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=6,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=num_tokens + 64,
        sliding_window=window,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = write_model(tmp_path / "model", config)
    flags = ("--block-size", str(block_size), "--max-num-batched-tokens", "512", "--max-num-seqs", "2")
    [prompt] = random_prompts((num_tokens,), seed=4)
    with shards_and_router(model, *flags) as cluster, Client(cluster.address, timeout_s=120) as client:
        free = cluster.num_blocks[0]
        least = free
        params = SamplingParams(temperature=0.0, max_tokens=48, ignore_eos=True)
        with ThreadPoolExecutor() as threads:
            # Several tokens may come in one message: what is free is looked at all the time.
            done = threads.submit(list, client.generate({"prompt_token_ids": prompt}, params))
            while not done.done():
                least = min(least, cluster.free_blocks())
            done.result()
        cluster.check_all_blocks_come_back()
    full_attention = 6 * -(-(num_tokens + 48) // block_size)
    assert 0.8 * share * full_attention < free - least <= share * full_attention
