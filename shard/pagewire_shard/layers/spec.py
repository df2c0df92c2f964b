"""What a decoder looks like, as data. A family file builds it from a configuration; the decoder and the loader read it.

Every option is there because a supported family needs it.
"""

from dataclasses import dataclass
from typing import Literal

from pagewire_shard.layers.activation import Activation
from pagewire_shard.layers.norm import NormSpec

NormPlace = Literal["pre", "post"]
RopeVariant = Literal["default", "linear", "llama3", "yarn"]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding (arXiv:2104.09864), the halves of a head paired."""

    theta: float
    """Base of the frequencies."""
    rotary_dim: int
    """Leading dimensions of a head that are rotated."""
    variant: RopeVariant = "default"
    """How the frequencies are stretched for contexts longer than the model was trained on."""
    factor: float = 1.0
    """The stretch; 1 for variant default."""
    original_max_position: int = 0
    """Context length before the stretch; llama3 and yarn."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths above original_max_position / low_freq_factor are stretched in full."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths below original_max_position / high_freq_factor are left alone."""
    beta_fast: float = 32.0
    """yarn: dimensions that turn more often than this over the original context are left alone."""
    beta_slow: float = 1.0
    """yarn: dimensions that turn less often than this are stretched in full."""
    truncate: bool = True
    """yarn: round the borders of the ramp to whole dimensions."""
    attention_factor: float = 1.0
    """yarn: multiplies cosine and sine."""


@dataclass(frozen=True, slots=True)
class LearnedPositions:
    """A table of position embeddings, added to the token embeddings."""

    offset: int = 0
    """Rows the table has before position 0."""


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """A dense feed-forward block."""

    intermediate_size: int
    activation: Activation
    gated: bool
    """down(activation(gate(x)) * up(x)) rather than down(activation(up(x)))."""
    bias: bool


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """A mixture of experts in place of a dense feed-forward block; each expert is gated by SiLU and has no biases."""

    num_experts: int
    top_k: int
    """Experts that each token goes through."""
    intermediate_size: int
    """Of one expert."""
    renormalise: bool
    """The chosen experts' weights are scaled to sum to 1."""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What may differ from layer to layer."""

    attention_scale: float
    """Multiplies query-key products."""
    sliding_window: int
    """A token attends to itself and the sliding_window - 1 tokens before it; 0: to all before it."""
    mlp: MlpSpec | MoeSpec


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A decoder-only transformer."""

    vocab_size: int
    hidden_size: int
    embedding_size: int
    """Width of the token embeddings; projected to and from hidden_size if it differs."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    """Longest sequence the positions allow."""
    layers: tuple[LayerSpec, ...]
    norm: NormSpec
    """Around attention and MLP, and the final one."""
    norm_place: NormPlace
    """pre: x + f(norm(x)); post: norm(x + f(x))."""
    final_norm: bool
    qk_norm: NormSpec | None
    """Over each head's query and key, before the rotation."""
    qkv_bias: bool
    o_bias: bool
    positions: RopeSpec | LearnedPositions
    tied_embeddings: bool
    """The output projection is the token embedding table."""
    initializer_range: float
    """Standard deviation of dummy weights."""
    parallel_residual: bool = False
    """x + attention(norm(x)) + mlp(norm(x)), with one norm."""
    lm_head_bias: bool = False

    @property
    def num_layers(self) -> int:
        return len(self.layers)
