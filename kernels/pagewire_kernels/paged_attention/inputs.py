"""The arguments of one call of paged_attention on a GPU, checked, and what its kernels derive from them."""

from dataclasses import dataclass
from functools import cache

import torch

_LOG2_E = 1.4426950408889634
_INTERPRETED = (90, 132)


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """See paged_attention for the fields; out is [num_tokens, num_heads, head_dim], contiguous, to be written."""

    query: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    block_tables: torch.Tensor
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    out: torch.Tensor
    scale: float
    max_query_len: int
    max_seq_len: int
    sliding_window: int
    logit_softcap: float
    alibi_slopes: torch.Tensor | None
    sinks: torch.Tensor | None

    @property
    def block_size(self) -> int:
        return self.key_cache.shape[1]

    @property
    def num_kv_heads(self) -> int:
        return self.key_cache.shape[2]

    @property
    def group_size(self) -> int:
        """Query heads that share a KV head."""
        return self.query.shape[1] // self.num_kv_heads

    @property
    def score_scale(self) -> float:
        """What q k is multiplied with: to powers of two; with a soft-cap, to twice the argument of its tanh."""
        return 2 * _LOG2_E * self.scale / self.logit_softcap if self.logit_softcap else _LOG2_E * self.scale

    @property
    def softcap_log2(self) -> float:
        """The soft-cap in powers of two."""
        return _LOG2_E * self.logit_softcap

    def check(self) -> None:
        """Raises ValueError for what the kernels cannot address."""
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


@cache
def gpu_traits(device: torch.device) -> tuple[int, int]:
    """(GPU generation as in tuning/, number of multiprocessors); Triton's interpreter is taken for an H200."""
    if device.type != "cuda":
        return _INTERPRETED
    major, minor = torch.cuda.get_device_capability(device)
    # Hopper and data centre Blackwell are alike whatever the minor number; Ampere's other parts have less memory.
    return 10 * major + (0 if major in (9, 10) else minor), torch.cuda.get_device_properties(
        device
    ).multi_processor_count
