"""The arguments of one call of mamba2."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Mamba2Inputs:
    """One batch: the new tokens of each sequence, and the slots that hold the states after the tokens before them.

    Heads h * num_heads / num_groups to (h + 1) * num_heads / num_groups - 1 share group h of b and c.
    """

    x: torch.Tensor
    """[num_tokens, num_heads, head_dim], sequence after sequence; each token's heads contiguous."""
    dt: torch.Tensor
    """[num_tokens, num_heads]: length of each head's step before dt_bias, softplus and limits; rows contiguous, x's
    dtype."""
    b: torch.Tensor
    """[num_tokens, num_groups, state_size]: where in the state x goes; each token's groups contiguous, x's dtype."""
    c: torch.Tensor
    """[num_tokens, num_groups, state_size]: how the state is read; likewise."""
    decay: torch.Tensor
    """[num_heads] float32, negative: rate at which the state decays, often called A."""
    skip: torch.Tensor
    """[num_heads] float32: factor of x in the output, often called D."""
    dt_bias: torch.Tensor
    """[num_heads] float32: added to dt before softplus."""
    state: torch.Tensor
    """[num_slots, num_heads, head_dim, state_size] float32, each slot contiguous; written."""
    read_slots: torch.Tensor
    """[num_seqs] int32: slot of the state that a sequence continues; -1: its state begins with zeros."""
    write_slots: torch.Tensor
    """[num_seqs] int32: slot that takes the state after the sequence's last token. It may be the read slot. No slot is
    written by two sequences, or read by one and written by another."""
    query_start_loc: torch.Tensor
    """[num_seqs + 1] int32. A sequence without new tokens writes nothing."""
    dt_min: float = 0.0
    """Least dt after softplus."""
    dt_max: float = math.inf
    """Largest dt after softplus."""
    gate: torch.Tensor | None = None
    """[num_tokens, num_heads, head_dim], laid out as x, x's dtype: the output is multiplied by its SiLU; None: it is
    not."""
    max_query_len: int = 2
    """Upper bound of the numbers of new tokens. 1: every sequence has exactly one."""
    num_decodes: int = 0
    """The first num_decodes sequences have exactly one new token each."""
    row_counts: torch.Tensor | None = None
    """[2] int64: the number of sequences, at most what there is room for, and that of decodes at their front, in place
    of num_decodes; None: there are exactly as many as the shapes and num_decodes say."""

    @property
    def num_heads(self) -> int:
        return self.x.shape[1]

    @property
    def head_dim(self) -> int:
        return self.x.shape[2]

    @property
    def num_groups(self) -> int:
        return self.b.shape[1]

    @property
    def state_size(self) -> int:
        return self.b.shape[2]

    def check(self) -> None:
        """Raises ValueError for shapes, strides and dtypes that no kernel takes."""
        num_tokens, num_heads, head_dim = self.x.shape
        if self.num_groups == 0 or num_heads % self.num_groups:
            raise ValueError(f"{num_heads} heads do not divide into {self.num_groups} groups")
        if self.state.shape[1:] != (num_heads, head_dim, self.state_size) or not self.state[0].is_contiguous():
            raise ValueError(f"slots must be contiguous and [{num_heads}, {head_dim}, {self.state_size}]")
        shapes = {self.dt.shape: (num_tokens, num_heads), self.c.shape: self.b.shape}
        if any(shape != expected for shape, expected in shapes.items()) or self.b.shape[0] != num_tokens:
            raise ValueError(f"dt {self.dt.shape}, b {self.b.shape} and c {self.c.shape} do not fit x {self.x.shape}")
        vectors = (self.decay, self.skip, self.dt_bias)
        if any(v.shape != (num_heads,) or v.dtype is not torch.float32 or not v.is_contiguous() for v in vectors):
            raise ValueError(f"decay, skip and dt_bias must be [{num_heads}] float32")
        rows = [self.x, self.b, self.c] + ([] if self.gate is None else [self.gate])
        if any(row.stride(2) != 1 or row.stride(1) != row.shape[2] for row in rows) or self.dt.stride(1) != 1:
            raise ValueError("each token's heads, groups and steps must be contiguous")
        if any(row.dtype is not self.x.dtype for row in (*rows, self.dt)):
            raise ValueError("x, dt, b, c and gate must have one dtype")
        if self.gate is not None and self.gate.shape != self.x.shape:
            raise ValueError(f"the gate must be {list(self.x.shape)}, not {list(self.gate.shape)}")
