"""The kernels of multi-head latent attention for GPUs against the reference, in Triton's interpreter.

Every float of torch.empty is NaN, so that an element which a kernel does not write is noticed.
"""

from dataclasses import replace

import pytest
import torch
from interpreter import IN_INTERPRETER, run_in_interpreter
from latent_batches import latent_inputs, latent_rows
from pagewire_kernels.latent_and_cache import reference as cache_reference
from pagewire_kernels.latent_attention import LatentInputs, reference

pytest.importorskip("triton")
runs_kernels = pytest.mark.skipif(not IN_INTERPRETER, reason="runs in the interpreter's own process")
TOLERANCES = {torch.float32: 1e-5, torch.float16: 3e-3}
SHAPES = [(4, 16, 8), (5, 24, 6), (20, 40, 8), (130, 7, 2), (16, 512, 64)]
"""num_heads, latent_dim, rope_dim."""


@pytest.mark.slow
@pytest.mark.skipif(IN_INTERPRETER, reason="is this process")
def test_kernels_agree_with_the_reference_in_the_interpreter() -> None:
    run_in_interpreter(__file__)


def attend(inputs: LatentInputs, min_split_tiles: int = 1) -> None:
    from pagewire_kernels.latent_attention.triton import LatentConfig, latent_attention

    config = LatentConfig(tile=16, num_stages=2, min_split_tiles=min_split_tiles)
    out = latent_attention(inputs, config)
    tolerance = TOLERANCES[inputs.cache.dtype]
    torch.testing.assert_close(out, reference.latent_attention(inputs), atol=tolerance, rtol=tolerance)


@runs_kernels
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("shape", SHAPES)
def test_decodes_and_prefills_of_any_shape(
    shape: tuple[int, int, int], dtype: torch.dtype, poisoned_memory: None
) -> None:
    attend(latent_inputs([1, 1, 9, 21], [30, 70, 20, 37], *shape, num_decodes=2, dtype=dtype))


@runs_kernels
@pytest.mark.parametrize("block_size", [1, 8, 16, 48, 64])
def test_any_block_size(block_size: int, poisoned_memory: None) -> None:
    attend(latent_inputs([1, 3, 40], [100, 35, 66], 6, 24, 8, block_size=block_size, num_decodes=1))


@runs_kernels
@pytest.mark.parametrize("min_split_tiles", [1, 2, 8])
def test_decodes_split_over_the_context(min_split_tiles: int, poisoned_memory: None) -> None:
    lens = [1, 15, 16, 17, 0, 200, 600, 33]
    attend(latent_inputs([1] * len(lens), lens, 6, 24, 8, num_decodes=len(lens)), min_split_tiles)


@runs_kernels
@pytest.mark.parametrize("query_lens", [[1, 1, 1], [1, 4, 2]])
def test_void_rows_are_zero(query_lens: list[int], poisoned_memory: None) -> None:
    attend(latent_inputs(query_lens, [4, 0, 7], 4, 16, 8, num_decodes=1))


@runs_kernels
@pytest.mark.parametrize("num_decodes", [0, 1, 3])
def test_counts_that_only_the_device_knows(num_decodes: int, poisoned_memory: None) -> None:
    """As a captured step calls it: shapes are the most there can be, the last sequences are empty."""
    query_lens = [1] * num_decodes + [5, 20]
    inputs = latent_inputs([*query_lens, 0, 0], [40] * num_decodes + [40, 20, 0, 0], 4, 16, 8)
    padding = 6
    padded = replace(
        inputs,
        query_latent=torch.nn.functional.pad(inputs.query_latent, (0, 0, 0, 0, 0, padding)),
        query_rope=torch.nn.functional.pad(inputs.query_rope, (0, 0, 0, 0, 0, padding)),
        max_seq_len=64,
        row_counts=torch.tensor([len(query_lens), num_decodes]),
    )
    from pagewire_kernels.latent_attention.triton import latent_attention

    out = latent_attention(padded)[:-padding]
    torch.testing.assert_close(out, reference.latent_attention(inputs), atol=1e-5, rtol=1e-5)


@runs_kernels
def test_heads_and_queries_may_be_strided(poisoned_memory: None) -> None:
    inputs = latent_inputs([1, 4], [30, 9], 6, 24, 8, num_decodes=1)
    attend(replace(inputs, query_latent=inputs.query_latent.transpose(0, 1).contiguous().transpose(0, 1)))


@runs_kernels
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("num_heads", "latent_dim", "rope_dim"), [(1, 16, 8), (5, 24, 6), (40, 512, 64)])
def test_latents_and_keys_are_written(num_heads: int, latent_dim: int, rope_dim: int, interleaved: bool) -> None:
    from pagewire_kernels.latent_and_cache.triton import latent_and_cache

    rows, expected = (latent_rows(9, num_heads, latent_dim, rope_dim, interleaved) for _ in range(2))
    latent_and_cache(rows)
    cache_reference.latent_and_cache(expected)
    torch.testing.assert_close(rows.cache, expected.cache, equal_nan=True)
    torch.testing.assert_close(rows.query_rope, expected.query_rope)
