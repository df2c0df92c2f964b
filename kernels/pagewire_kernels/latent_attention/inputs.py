"""The arguments of one call of latent_attention."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LatentInputs:
    """One batch: the new tokens of each sequence, and the cache that holds the latents of all of their tokens so far.

    latent_dim and rope_dim: the widths of a latent and of the rotated key beside it.
    """

    query_latent: torch.Tensor
    """[num_tokens, num_heads, latent_dim], sequence after sequence: the unrotated part of each head's query, multiplied
    by the head's key matrix. Last dimension contiguous."""
    query_rope: torch.Tensor
    """[num_tokens, num_heads, rope_dim]: the rotated part. Last dimension contiguous, query_latent's dtype."""
    cache: torch.Tensor
    """[num_blocks, block_size, latent_dim + rope_dim], contiguous, query_latent's dtype; see latent_and_cache."""
    block_tables: torch.Tensor
    """[num_seqs, max_blocks] int32, rows contiguous; entries beyond a sequence's length are not read."""
    query_start_loc: torch.Tensor
    """[num_seqs + 1] int32."""
    seq_lens: torch.Tensor
    """[num_seqs] int32, new tokens included; 0: the row is void and its output is zero."""
    scale: float
    """Multiplies the scores; positive."""
    max_query_len: int
    """Upper bound of the query lengths. 1: every sequence has exactly one new token."""
    max_seq_len: int
    """Upper bound of seq_lens."""
    num_decodes: int = 0
    """As AttentionInputs has it."""
    row_counts: torch.Tensor | None = None
    """As AttentionInputs has it."""

    @property
    def num_heads(self) -> int:
        return self.query_latent.shape[1]

    @property
    def latent_dim(self) -> int:
        return self.query_latent.shape[2]

    @property
    def rope_dim(self) -> int:
        return self.query_rope.shape[2]

    @property
    def block_size(self) -> int:
        return self.cache.shape[1]

    def check(self) -> None:
        """Raises ValueError for shapes, strides and dtypes that no kernel takes."""
        width = self.latent_dim + self.rope_dim
        if self.query_latent.shape[:2] != self.query_rope.shape[:2] or self.cache.shape[2] != width:
            raise ValueError(
                f"queries {list(self.query_latent.shape)} and {list(self.query_rope.shape)} do not fit a cache of "
                f"{self.cache.shape[2]} elements a token"
            )
        if self.query_latent.stride(2) != 1 or self.query_rope.stride(2) != 1 or self.block_tables.stride(1) != 1:
            raise ValueError("the last dimension of queries and block_tables must be contiguous")
        if not self.cache.is_contiguous():
            raise ValueError("the cache must be contiguous")
        if not self.query_latent.dtype is self.query_rope.dtype is self.cache.dtype:
            raise ValueError(
                f"query_latent is {self.query_latent.dtype}, query_rope {self.query_rope.dtype}, "
                f"the cache {self.cache.dtype}"
            )
        if not self.scale > 0:
            raise ValueError(f"scale must be positive, not {self.scale}")
