"""The arguments of one call of latent_and_cache."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LatentRows:
    """One batch of projected tokens, their positions, and the cache that takes their latents."""

    query_rope: torch.Tensor
    """[num_tokens, num_heads, rope_dim], each token's heads contiguous; rotated in place."""
    latent: torch.Tensor
    """[num_tokens, latent_dim + rope_dim], rows contiguous: the latent, then the key that all heads share. Undefined
    afterwards: a CPU changes it, a GPU does not."""
    norm_weight: torch.Tensor
    """[latent_dim]: RMS norm of the latent; in latent's dtype or in float32, as rms_norm has it."""
    eps: float
    """Added to the mean square of each latent."""
    positions: torch.Tensor
    """[num_tokens] int64."""
    cos_sin_cache: torch.Tensor
    """[max_position, rope_dim] float32: rope_dim / 2 cosines, then as many sines."""
    cache: torch.Tensor
    """[num_blocks, block_size, latent_dim + rope_dim], contiguous, latent's dtype; written."""
    slot_mapping: torch.Tensor
    """[num_tokens] int64: block_id * block_size + offset; -1: not written."""
    interleaved: bool = False
    """Pairs are (0, 1), (2, 3), ... as in GPT-J, instead of (i, i + rope_dim / 2) as in GPT-NeoX."""
