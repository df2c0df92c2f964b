"""The arguments of one call of paged_attention, and what GPU kernels derive from them."""

from dataclasses import dataclass

import torch

from pagewire_kernels.paged_attention.shared_prefixes import SharedPrefixes

_LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """One batch: the new tokens of each sequence, and the cache that holds all of their tokens so far."""

    query: torch.Tensor
    """[num_tokens, num_heads, head_dim], sequence after sequence; each token's heads contiguous. num_heads is a
    multiple of the cache's num_kv_heads."""
    key_cache: torch.Tensor
    """In the device's layout (kv_cache.py), query's dtype."""
    value_cache: torch.Tensor
    """In the device's layout, query's dtype."""
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
    sliding_window: int = 0
    """A token attends to itself and the sliding_window - 1 tokens before it; 0: to all."""
    logit_softcap: float = 0.0
    """Scores become cap * tanh(score / cap); 0: they stay."""
    alibi_slopes: torch.Tensor | None = None
    """[num_heads], contiguous, on a CPU float32: slope * distance is subtracted from a head's scores (after the cap),
    where distance is how far the key lies behind the query. ALiBi, arXiv:2108.12409."""
    sinks: torch.Tensor | None = None
    """[num_heads], contiguous: a score, neither scaled nor capped, that takes part in a head's softmax and has no
    value. float32 on a CPU."""
    num_decodes: int = 0
    """The first num_decodes sequences have exactly one new token each; a GPU attends from them in a launch of their
    own. Results do not depend on it."""
    row_counts: torch.Tensor | None = None
    """[2] int64, contiguous, on query's device: how many sequences, the first ones, have new tokens, and how many of
    these, the first ones, are decodes (num_decodes is not read then). The others have neither new tokens nor a length.
    A GPU's launches depend on shapes alone then, so that one captured graph serves every mixture."""
    shared: SharedPrefixes | None = None
    """What the decodes share: a GPU reads it once for all of them, unless there is a sliding window, whose keys differ
    from row to row. Results do not depend on it but for rounding. A CPU, whose results depend on a sequence alone bit
    for bit, does not read it."""

    @property
    def block_size(self) -> int:
        return self.key_cache.shape[1]

    @property
    def num_kv_heads(self) -> int:
        return self.key_cache.shape[2]

    @property
    def group_size(self) -> int:
        """Number of query heads that share a KV head."""
        return self.query.shape[1] // self.num_kv_heads

    @property
    def score_scale(self) -> float:
        """Factor of q k that gives exponents of two or, with a soft-cap, twice the argument of its tanh."""
        return 2 * _LOG2_E * self.scale / self.logit_softcap if self.logit_softcap else _LOG2_E * self.scale

    @property
    def softcap_log2(self) -> float:
        """The soft-cap in powers of two."""
        return _LOG2_E * self.logit_softcap

    def check(self) -> None:
        """Raises ValueError for shapes, strides and dtypes that the kernels do not take."""
        _, num_heads, head_dim = self.query.shape
        if self.query.stride(2) != 1 or self.query.stride(1) != head_dim or self.block_tables.stride(1) != 1:
            raise ValueError("the heads of a token must be contiguous in query, and block_tables' rows")
        if not self.key_cache.is_contiguous() or not self.value_cache.is_contiguous():
            raise ValueError("the caches must be contiguous")
        if self.query.dtype is not self.key_cache.dtype or self.query.dtype is not self.value_cache.dtype:
            raise ValueError(
                f"query is {self.query.dtype}, the caches {self.key_cache.dtype}, {self.value_cache.dtype}"
            )
        if num_heads % self.num_kv_heads:
            raise ValueError(f"{num_heads} heads do not divide among {self.num_kv_heads} KV heads")
        if not self.scale > 0:
            raise ValueError(f"scale must be positive, not {self.scale}")
        for name, per_head in (("alibi_slopes", self.alibi_slopes), ("sinks", self.sinks)):
            if per_head is not None and (per_head.shape != (num_heads,) or not per_head.is_contiguous()):
                raise ValueError(f"{name} must be contiguous and of shape [{num_heads}], not {list(per_head.shape)}")
        counts = self.row_counts
        if counts is not None and (counts.shape != (2,) or counts.dtype is not torch.int64):
            raise ValueError(f"row_counts must be 2 of int64, not {list(counts.shape)} of {counts.dtype}")
