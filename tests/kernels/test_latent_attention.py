"""Multi-head latent attention on the CPU against its reference, and the reference against attention that absorbs
nothing."""

from dataclasses import replace

import pytest
import torch
from latent_batches import latent_inputs, latent_rows
from pagewire_kernels.latent_and_cache import latent_and_cache
from pagewire_kernels.latent_and_cache import reference as cache_reference
from pagewire_kernels.latent_attention import LatentInputs, latent_attention, reference

SHAPES = [(1, 16, 8), (16, 32, 16), (5, 24, 6), (64, 40, 8), (20, 512, 64), (7, 1, 2)]
"""num_heads, latent_dim, rope_dim."""


def check(inputs: LatentInputs) -> None:
    out = latent_attention(inputs)
    assert out.is_contiguous()
    torch.testing.assert_close(out, reference.latent_attention(inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("block_size", [1, 5, 8, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_mixed_batch_of_any_shape(shape: tuple[int, int, int], block_size: int, poisoned_memory: None) -> None:
    check(latent_inputs([7, 1, 20, 1, 50, 3], [7, 30, 37, 1, 131, 0], *shape, block_size=block_size))


@pytest.mark.parametrize("shape", SHAPES)
def test_decode_batch(shape: tuple[int, int, int], poisoned_memory: None) -> None:
    check(latent_inputs([1] * 9, [1, 2, 15, 16, 17, 0, 63, 65, 300], *shape))


def test_heads_and_queries_may_be_strided(poisoned_memory: None) -> None:
    inputs = latent_inputs([4, 1], [30, 9], 6, 24, 8)
    by_head = inputs.query_latent.transpose(0, 1).contiguous().transpose(0, 1)
    assert by_head.stride() != inputs.query_latent.stride()
    check(replace(inputs, query_latent=by_head))


@pytest.mark.parametrize("shape", [(16, 32, 16), (5, 24, 6)])
def test_a_query_has_the_same_bits_however_a_prompt_is_cut_up(shape: tuple[int, int, int]) -> None:
    whole_inputs = latent_inputs([200], [200], *shape)
    whole = latent_attention(whole_inputs)
    for chunk in (1, 3, 17, 130):
        for first in range(0, 200, chunk):
            end = min(first + chunk, 200)
            part = replace(
                whole_inputs,
                query_latent=whole_inputs.query_latent[first:end],
                query_rope=whole_inputs.query_rope[first:end],
                query_start_loc=torch.tensor([0, end - first], dtype=torch.int32),
                seq_lens=torch.tensor([end], dtype=torch.int32),
                max_query_len=end - first,
                max_seq_len=end,
            )
            assert torch.equal(latent_attention(part), whole[first:end])


def test_absorbing_the_heads_matrices_changes_nothing() -> None:
    num_heads, latent_dim, rope_dim, nope_dim, value_dim = 3, 20, 4, 12, 10
    inputs = latent_inputs([25], [25], num_heads, latent_dim, rope_dim, dtype=torch.float64, block_size=25)
    generator = torch.Generator().manual_seed(1)
    keys = torch.randn(num_heads, nope_dim, latent_dim, generator=generator, dtype=torch.float64)
    values = torch.randn(num_heads, value_dim, latent_dim, generator=generator, dtype=torch.float64)
    query = torch.randn(25, num_heads, nope_dim, generator=generator, dtype=torch.float64)
    absorbed = torch.einsum("thn,hnl->thl", query, keys)
    out = torch.einsum("thl,hvl->thv", reference.latent_attention(replace(inputs, query_latent=absorbed)), values)

    latents, key_rope = inputs.cache[int(inputs.block_tables[0, 0])].split([latent_dim, rope_dim], dim=1)
    full_keys = torch.cat(
        (torch.einsum("hnl,sl->shn", keys, latents), key_rope[:, None].expand(-1, num_heads, -1)), dim=2
    )
    full_query = torch.cat((query, inputs.query_rope), dim=2)
    expected = torch.nn.functional.scaled_dot_product_attention(
        full_query.transpose(0, 1),
        full_keys.transpose(0, 1),
        torch.einsum("hvl,sl->hsv", values, latents),
        is_causal=True,
        scale=inputs.scale,
    )
    torch.testing.assert_close(out, expected.transpose(0, 1))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("num_heads", "latent_dim", "rope_dim"), [(1, 16, 8), (5, 24, 6), (16, 512, 64)])
def test_latents_and_keys_are_written(num_heads: int, latent_dim: int, rope_dim: int, interleaved: bool) -> None:
    rows, expected = (latent_rows(9, num_heads, latent_dim, rope_dim, interleaved) for _ in range(2))
    latent_and_cache(rows)
    cache_reference.latent_and_cache(expected)
    torch.testing.assert_close(rows.cache, expected.cache, equal_nan=True)
    torch.testing.assert_close(rows.query_rope, expected.query_rope)
    assert rows.cache.isnan().any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cache": torch.zeros(3, 16, 9)}, "a cache of 9 elements"),
        ({"query_rope": torch.zeros(2, 4, 8).half()}, "float16"),
        ({"scale": 0.0}, "positive"),
        ({"cache": torch.zeros(3, 24, 16).transpose(1, 2)}, "contiguous"),
    ],
)
def test_what_no_kernel_takes_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latent_attention(replace(latent_inputs([1, 1], [3, 4], 4, 16, 8), **change))  # type: ignore[arg-type]
