"""Token and position embeddings."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LearnedPositions:
    """A table of position embeddings, added to the token embeddings."""

    offset: int = 0
    """Number of rows before that of position 0."""


class Embedding:
    """A table whose rows are looked up and cast to the activations' dtype."""

    def __init__(self, table: torch.Tensor, dtype: torch.dtype, offset: int = 0) -> None:
        self._table = table
        self._dtype = dtype
        self._offset = offset

    def __call__(self, indices: torch.Tensor) -> torch.Tensor:
        """[num_tokens] int64 -> [num_tokens, width]."""
        if self._offset:
            indices = indices + self._offset
        return torch.index_select(self._table, 0, indices).to(self._dtype)
