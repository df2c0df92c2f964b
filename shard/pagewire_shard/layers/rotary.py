"""Rotary position embedding and its long-context variants: the tables of cosines and sines."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

RopeVariant = Literal["default", "linear", "llama3", "yarn", "proportional", "longrope"]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding (arXiv:2104.09864)."""

    theta: float
    """Base of the frequencies."""
    rotary_dim: int
    """Leading dimensions of a head that are rotated."""
    variant: RopeVariant = "default"
    """How the frequencies are stretched for contexts longer than the model was trained on."""
    factor: float = 1.0
    """How much the context is stretched; 1 for variant default."""
    original_max_position: int = 0
    """Context length before the stretch; llama3, yarn and longrope."""
    short_factors: tuple[float, ...] = ()
    """longrope: how much the wavelength of each pair of dimensions is stretched in sequences of at most
    original_max_position tokens."""
    long_factors: tuple[float, ...] = ()
    """longrope: the same in longer ones."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths above original_max_position / low_freq_factor are stretched in full."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths below original_max_position / high_freq_factor are not stretched."""
    beta_fast: float = 32.0
    """yarn: dimensions that turn more often than this over the original context are not stretched."""
    beta_slow: float = 1.0
    """yarn: dimensions that turn less often than this are stretched in full."""
    truncate: bool = True
    """yarn: round the borders of the ramp to whole dimensions."""
    num_turning: int = 0
    """proportional: pairs of dimensions that turn, the first ones; the others stand still."""
    attention_factor: float = 1.0
    """yarn and longrope: multiplies cosine and sine."""
    interleaved: bool = False
    """Pairs of dimensions are (0, 1), (2, 3), ... as in GPT-J, instead of (i, i + rotary_dim / 2) as in GPT-NeoX."""

    @property
    def longest_short(self) -> int:
        """The most tokens of a sequence that is rotated by the short factors; 0: all sequences are rotated alike."""
        return self.original_max_position if self.variant == "longrope" else 0


def cos_sin_cache(rope: RopeSpec, num_positions: int, device: torch.device) -> torch.Tensor:
    """[num_positions, rotary_dim] float32: the cosines of each position's rotary_dim / 2 angles, then their sines.

    With longrope twice as many rows: those of short sequences, then those of long ones.
    """
    # Computed on the host in float32, as transformers does, so that every device rotates by the same angles.
    positions = torch.arange(num_positions, dtype=torch.float32)
    angles = positions[:, None] * inverse_frequencies(rope)
    if rope.variant == "longrope":
        angles = torch.cat((angles, positions[:, None] * _longrope(rope, rope.long_factors)))
    cache = torch.cat((angles.cos(), angles.sin()), dim=-1)
    return (cache * rope.attention_factor).to(device)


def inverse_frequencies(rope: RopeSpec) -> torch.Tensor:
    """[rotary_dim / 2] float32: radians per position; with longrope those of short sequences."""
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
        case "longrope":
            return _longrope(rope, rope.short_factors)
        case "proportional":
            inverse = 1.0 / frequencies / rope.factor
            inverse[rope.num_turning :] = 0.0
            return inverse


def _llama3(rope: RopeSpec, inverse: torch.Tensor) -> torch.Tensor:
    """Long wavelengths are stretched, short ones kept, those between interpolated (arXiv:2407.21783, Llama 3.1)."""
    # Operations are in transformers' order, here and below, so that roundings and therefore angles are equal.
    wavelengths = 2 * math.pi / inverse
    num_turns = rope.original_max_position / wavelengths
    kept_share = (num_turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept_share = kept_share.clamp(0.0, 1.0)
    return (1 - kept_share) * inverse / rope.factor + kept_share * inverse


def _longrope(rope: RopeSpec, factors: tuple[float, ...]) -> torch.Tensor:
    """arXiv:2402.13753: a factor for each pair of dimensions."""
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.float32) / rope.rotary_dim
    return 1.0 / (torch.tensor(factors, dtype=torch.float32) * rope.theta**exponents)


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
    """The dimension that makes num_turns full turns over the original context."""
    ratio = rope.original_max_position / (num_turns * 2 * math.pi)
    return rope.rotary_dim * math.log(ratio) / (2 * math.log(rope.theta))
