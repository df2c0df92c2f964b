"""How memory is divided among blocks and states."""

from pathlib import Path

import pytest
import transformers
from pagewire_shard.config import ShardConfig
from pagewire_shard.engine.engine import Engine
from pagewire_shard.errors import PoolTooSmall
from pagewire_shard.pool_sizes import CHECKPOINT_TOKENS, PoolSizes, divide_pool, most_seqs_with_states
from pagewire_shard.startup import build_engine
from random_models import write_model

SIZES = {"block_size": 16, "max_num_seqs": 8, "blocks_of_longest": 100}


def test_without_states_all_memory_is_blocks() -> None:
    assert divide_pool(5000, 10, 0, **SIZES) == PoolSizes(500, 0, 8)
    assert divide_pool(50_000, 10, 0, **SIZES) == PoolSizes(800, 0, 8), "more can never be used"


def test_every_sequence_has_two_states_and_blocks_get_the_rest() -> None:
    assert divide_pool(5000, 10, 200, **SIZES) == PoolSizes((5000 - 16 * 200) // 10, 16, 8)


def test_much_memory_has_a_checkpoint_for_each_so_many_tokens() -> None:
    sizes = divide_pool(10**9, 10_000, 1_000_000, block_size=16, max_num_seqs=8, blocks_of_longest=10**6)
    assert sizes.num_states == pytest.approx(sizes.num_blocks * 16 / CHECKPOINT_TOKENS, rel=0.01)
    assert 0 <= 10**9 - sizes.num_blocks * 10_000 - sizes.num_states * 1_000_000 < 10_000


def test_memory_that_the_states_of_all_sequences_fill_has_no_blocks() -> None:
    assert divide_pool(3000, 10, 200, **SIZES).num_blocks == 0
    assert divide_pool(3000, 0, 200, **SIZES).num_blocks == 0


def test_a_model_without_blocks_has_states_alone() -> None:
    assert divide_pool(50_000, 0, 200, **SIZES) == PoolSizes(800, 250, 8)


def test_sequences_are_as_many_as_half_of_the_memory_has_states_for() -> None:
    assert most_seqs_with_states(10_000, 200) == 12
    assert most_seqs_with_states(10, 200) == 1


def engine(tmp_path: Path, **options: object) -> Engine:
    config = transformers.Lfm2Config(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        layer_types=["conv", "full_attention"],
    )
    model = write_model(tmp_path / "model", config)
    return build_engine(ShardConfig(str(model), "m", device="cpu", **options), model, b"")  # type: ignore[arg-type]


def test_a_shard_takes_as_many_sequences_as_it_has_states_for(tmp_path: Path) -> None:
    """A state is 2 inputs of 32 channels in float32, 256 bytes; a block 2 * 16 * 2 * 8 * 4, 2,048."""
    shard = engine(tmp_path, kv_cache_memory_bytes=20_000)
    [attention, states] = shard.info.cache_groups
    assert (attention.num_tables, states.num_tables) == (1, 0)
    assert states.num_states >= 2 * shard.info.max_num_seqs
    num_bytes = shard.info.num_blocks[0] * 2048 + (states.num_states) * 256
    assert 20_000 - 2048 < num_bytes <= 20_000
    assert shard.info.max_num_seqs == min(most_seqs_with_states(20_000, 256), 20_000 // 128 // 64)


def test_sequences_whose_states_do_not_fit_are_refused_with_what_they_need(tmp_path: Path) -> None:
    with pytest.raises(PoolTooSmall, match="--kv-cache-memory"):
        engine(tmp_path, kv_cache_memory_bytes=20_000, max_num_seqs=64)
