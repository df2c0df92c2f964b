"""Batches for the tests of multi-head latent attention; every slot that no token owns holds NaN."""

import torch
from pagewire_kernels.latent_and_cache import LatentRows
from pagewire_kernels.latent_attention import LatentInputs


def latent_inputs(
    query_lens: list[int],
    seq_lens: list[int],
    num_heads: int,
    latent_dim: int,
    rope_dim: int,
    *,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    num_decodes: int = 0,
) -> LatentInputs:
    """A batch whose blocks are scattered over the pool."""
    generator = torch.Generator().manual_seed(0)
    num_blocks = [-(-seq_len // block_size) for seq_len in seq_lens]
    pool = torch.randperm(sum(num_blocks) + 3, generator=generator).tolist()
    cache = torch.full((len(pool), block_size, latent_dim + rope_dim), torch.nan, dtype=dtype)
    # Entries beyond a sequence's blocks are arbitrary: a block id that would be noticed.
    block_tables = torch.full((len(seq_lens), max(num_blocks) + 1), 2**30, dtype=torch.int32)
    for row, seq_len in enumerate(seq_lens):
        for i in range(num_blocks[row]):
            block = pool.pop()
            block_tables[row, i] = block
            num_tokens = min(block_size, seq_len - i * block_size)
            tokens = torch.randn(num_tokens, latent_dim + rope_dim, generator=generator, dtype=torch.float64)
            cache[block, :num_tokens] = tokens.to(dtype)
    num_tokens = sum(query_lens)
    # The rotated parts are a slice of a wider tensor, as they are of the projection.
    projected = torch.randn(num_tokens, num_heads * rope_dim + 16, generator=generator, dtype=torch.float64).to(dtype)
    starts = [sum(query_lens[:i]) for i in range(len(query_lens) + 1)]
    return LatentInputs(
        query_latent=torch.randn(num_tokens, num_heads, latent_dim, generator=generator, dtype=torch.float64).to(dtype),
        query_rope=projected[:, 16:].unflatten(1, (num_heads, rope_dim)),
        cache=cache,
        block_tables=block_tables,
        query_start_loc=torch.tensor(starts, dtype=torch.int32),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        scale=(latent_dim + rope_dim) ** -0.5,
        max_query_len=max(query_lens),
        max_seq_len=max(seq_lens),
        num_decodes=num_decodes,
    )


def latent_rows(num_tokens: int, num_heads: int, latent_dim: int, rope_dim: int, interleaved: bool) -> LatentRows:
    """Projected tokens, some of which are not written."""
    generator = torch.Generator().manual_seed(0)
    angles = torch.rand(40, rope_dim // 2, generator=generator)
    slots = torch.randperm(48, generator=generator)[:num_tokens]
    slots[::4] = -1
    projected = torch.randn(num_tokens, latent_dim + rope_dim + 16, generator=generator)
    return LatentRows(
        query_rope=torch.randn(num_tokens, num_heads * rope_dim + 4, generator=generator)[:, 4:].unflatten(
            1, (num_heads, rope_dim)
        ),
        latent=projected[:, 16:],
        norm_weight=torch.randn(latent_dim, generator=generator),
        eps=1e-6,
        positions=torch.randint(40, (num_tokens,), generator=generator),
        cos_sin_cache=torch.cat((angles.cos(), angles.sin()), dim=1),
        cache=torch.full((3, 16, latent_dim + rope_dim), torch.nan),
        slot_mapping=slots,
        interleaved=interleaved,
    )
