"""Cosines and sines of the rotary position embedding and its long-context variants."""

import math

import torch

from pagewire_shard.layers.spec import RopeSpec


def cos_sin_cache(rope: RopeSpec, num_positions: int, device: torch.device) -> torch.Tensor:
    """[num_positions, rotary_dim] float32: the cosines of each position's rotary_dim / 2 angles, then their sines."""
    # Computed on the host in float32, as transformers does, so that every device rotates by the same angles.
    positions = torch.arange(num_positions, dtype=torch.float32)
    angles = positions[:, None] * inverse_frequencies(rope)
    cache = torch.cat((angles.cos(), angles.sin()), dim=-1)
    return (cache * rope.attention_factor).to(device)


def inverse_frequencies(rope: RopeSpec) -> torch.Tensor:
    """[rotary_dim / 2] float32: radians per position."""
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.float32) / rope.rotary_dim
    frequencies = rope.theta**exponents
    match rope.variant:
        case "default":
            return 1.0 / frequencies
        case "linear":
            return 1.0 / frequencies / rope.factor
        case "llama3":
            return _llama3(rope, 1.0 / frequencies)
        case "yarn":
            return _yarn(rope, frequencies)


def _llama3(rope: RopeSpec, inverse: torch.Tensor) -> torch.Tensor:
    """Long wavelengths are stretched, short ones kept, those between interpolated (arXiv:2407.21783, Llama 3.1)."""
    # Operations in transformers' order, here and below: the same roundings, so the same angles at every position.
    wavelengths = 2 * math.pi / inverse
    num_turns = rope.original_max_position / wavelengths
    kept_share = (num_turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept_share = kept_share.clamp(0.0, 1.0)
    return (1 - kept_share) * inverse / rope.factor + kept_share * inverse


def _yarn(rope: RopeSpec, frequencies: torch.Tensor) -> torch.Tensor:
    """arXiv:2309.00071 section 3.2: a ramp over the dimensions, from kept to stretched."""
    low, high = _yarn_dimension(rope, rope.beta_fast), _yarn_dimension(rope, rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(rope.rotary_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0.0, 1.0)
    kept_share = 1 - ramp
    return 1.0 / (rope.factor * frequencies) * (1 - kept_share) + 1.0 / frequencies * kept_share


def _yarn_dimension(rope: RopeSpec, num_turns: float) -> float:
    """The dimension that turns num_turns times over the original context."""
    ratio = rope.original_max_position / (num_turns * 2 * math.pi)
    return rope.rotary_dim * math.log(ratio) / (2 * math.log(rope.theta))
