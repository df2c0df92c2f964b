"""The arguments of one call of rotary_and_cache."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class RotaryInputs:
    """One batch of projected heads, their positions, and the cache that takes keys and values."""

    query: torch.Tensor
    """[num_tokens, num_heads, head_dim], each token's heads contiguous; normed and rotated in place."""
    key: torch.Tensor
    """[num_tokens, num_kv_heads, head_dim], likewise. Undefined afterwards: a CPU changes it, a GPU does not."""
    value: torch.Tensor
    """[num_tokens, num_kv_heads, head_dim], likewise; read only."""
    positions: torch.Tensor
    """[num_tokens] int64."""
    cos_sin_cache: torch.Tensor
    """[max_position, rotary_dim] float32: rotary_dim / 2 cosines, then as many sines."""
    key_cache: torch.Tensor
    """In the device's layout (kv_cache.py), key's dtype; written."""
    value_cache: torch.Tensor
    """In the device's layout, value's dtype; written."""
    slot_mapping: torch.Tensor
    """[num_tokens] int64: block_id * block_size + offset; -1: not written."""
    interleaved: bool = False
    """Pairs are (0, 1), (2, 3), ... as in GPT-J, instead of (i, i + rotary_dim / 2) as in GPT-NeoX."""
    q_norm_weight: torch.Tensor | None = None
    """[head_dim]: RMS norm of each head, in query's dtype or in float32, as rms_norm has it; given together with
    k_norm_weight or not at all."""
    k_norm_weight: torch.Tensor | None = None
    """[head_dim], q_norm_weight's dtype."""
    eps: float = 0.0
    """Added to the mean square of each head."""
