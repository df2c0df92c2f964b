"""The arguments of one call of gated_delta_net."""

from dataclasses import dataclass

import torch

NORM_EPS = 1e-6
"""Added to the squared length of queries and keys before they are divided by its root."""


@dataclass(frozen=True, slots=True)
class DeltaInputs:
    """One batch: the new tokens of each sequence, and the states that hold what is left of all tokens before them.

    Each key head serves num_heads // num_key_heads consecutive heads.
    """

    query: torch.Tensor
    """[num_tokens, num_key_heads, key_dim], sequence after sequence, not normalised; each token's heads contiguous."""
    key: torch.Tensor
    """As query."""
    value: torch.Tensor
    """[num_tokens, num_heads, value_dim], query's dtype; each token's heads contiguous."""
    beta_logits: torch.Tensor
    """[num_tokens, num_heads], query's dtype; last dimension contiguous. beta is beta_scale * sigmoid of it."""
    decay_logits: torch.Tensor
    """As beta_logits. A state decays by exp(-exp(a_log) * softplus(decay_logit + dt_bias))."""
    a_log: torch.Tensor
    """[num_heads] float32, contiguous."""
    dt_bias: torch.Tensor
    """[num_heads] float32, contiguous."""
    gate: torch.Tensor
    """As value: multiplies, through SiLU, what is normalised."""
    norm_weight: torch.Tensor
    """[value_dim], query's dtype, contiguous: of the RMS norm over each head's output."""
    eps: float
    """Added to the mean square of a head's output."""
    state: torch.Tensor
    """[num_slots, num_heads, key_dim, value_dim] float32; each slot contiguous."""
    read_slots: torch.Tensor
    """[num_seqs] int32, contiguous: the slot of the state before a sequence's first new token; -1: it is zero."""
    write_slots: torch.Tensor
    """[num_seqs] int32, contiguous: the slot that receives the state after a sequence's last new token. No sequence
    writes to a slot that another reads or writes, but for void ones, whose results do not matter."""
    query_start_loc: torch.Tensor
    """[num_seqs + 1] int32, contiguous: where each sequence's new tokens start."""
    max_query_len: int
    """Upper bound of the query lengths. 1: every sequence has exactly one new token."""
    num_decodes: int = 0
    """The first num_decodes sequences have exactly one new token each. Results depend on it by rounding alone."""
    row_counts: torch.Tensor | None = None
    """As AttentionInputs has it."""
    beta_scale: float = 1.0

    @property
    def num_key_heads(self) -> int:
        return self.key.shape[1]

    @property
    def num_heads(self) -> int:
        return self.value.shape[1]

    @property
    def key_dim(self) -> int:
        return self.key.shape[2]

    @property
    def value_dim(self) -> int:
        return self.value.shape[2]

    def check(self) -> None:
        """Raises ValueError for shapes, strides and dtypes that no kernel takes."""
        if self.num_heads % self.num_key_heads:
            raise ValueError(f"{self.num_heads} heads do not divide among {self.num_key_heads} key heads")
        dims = {"query": self.key_dim, "key": self.key_dim, "value": self.value_dim, "gate": self.value_dim}
        for name, dim in dims.items():
            tensor: torch.Tensor = getattr(self, name)
            if tensor.stride(2) != 1 or tensor.stride(1) != dim or tensor.dtype is not self.query.dtype:
                raise ValueError(f"the heads of a token must be contiguous in {name}, and of the dtype of query")
        logits = self.beta_logits, self.decay_logits
        if any(each.stride(1) != 1 or each.dtype is not self.query.dtype for each in logits):
            raise ValueError("the logits of a token must be contiguous, and of the dtype of query")
        if self.norm_weight.dtype is not self.query.dtype:
            raise ValueError(f"norm_weight is {self.norm_weight.dtype}, query {self.query.dtype}")
        shape = (self.num_heads, self.key_dim, self.value_dim)
        if self.state.shape[1:] != shape or not self.state[:1].is_contiguous():
            raise ValueError(f"each state must be contiguous and of shape {list(shape)}, not {list(self.state.shape)}")
