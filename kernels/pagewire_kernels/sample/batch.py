"""How each row of a batch of logits is to be sampled."""

from dataclasses import dataclass, replace

import torch

GREEDY_BELOW = 1e-5
"""Temperatures below this mean the most probable token."""


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """Sampling parameters of num_rows rows of logits, on the logits' device. Values are vLLM's.

    Integers may be of any width. With by_slot, all tensors but token_ids and slots have one entry for each slot instead
    of each row, [num_slots] instead of [num_rows]: columns of the sequences' state, which nobody has to gather.
    """

    temperature: torch.Tensor
    """[num_rows] float32."""
    top_k: torch.Tensor
    """[num_rows] int32; 0 or less: off."""
    top_p: torch.Tensor
    """[num_rows] float32; 1: off."""
    min_p: torch.Tensor
    """[num_rows] float32; 0: off."""
    presence_penalty: torch.Tensor
    """[num_rows] float32."""
    frequency_penalty: torch.Tensor
    """[num_rows] float32."""
    repetition_penalty: torch.Tensor
    """[num_rows] float32."""
    seeds: torch.Tensor
    """[num_rows] int64: the bits of an unsigned seed."""
    positions: torch.Tensor
    """[num_rows] int64: the place in its sequence of the token to be sampled."""
    token_ids: torch.Tensor
    """[num_slots, max_len] int32: the tokens of all sequences, rows contiguous."""
    slots: torch.Tensor
    """[num_rows] int64: each row's row in token_ids."""
    num_prompt_tokens: torch.Tensor
    """[num_rows] int32."""
    num_tokens: torch.Tensor
    """[num_rows] int32: prompt and output so far."""
    stop_token_ids: torch.Tensor
    """[num_rows, max_stop_tokens] int32, padded with -1."""
    mask_stop: torch.Tensor
    """[num_rows] bool: the row's stop tokens may not be sampled yet."""
    all_greedy: bool
    """No row's temperature reaches GREEDY_BELOW."""
    any_penalties: bool
    """Some row has a penalty."""
    any_stop_mask: bool
    """Some row may have mask_stop set."""
    by_slot: bool = False
    """Row i's parameters are those at slots[i]."""

    def by_row(self) -> "SamplingBatch":
        """The same with one entry for each row."""
        if not self.by_slot:
            return self
        return replace(self, by_slot=False, **{name: getattr(self, name)[self.slots] for name in _PER_ROW})


_PER_ROW = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seeds",
    "positions",
    "num_prompt_tokens",
    "num_tokens",
    "stop_token_ids",
    "mask_stop",
)
