"""Token and position embeddings."""

from dataclasses import dataclass

import torch

from pagewire_shard.parallel.collectives import Collectives


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


class SharedEmbedding:
    """A table of which each rank of a group holds some rows, in their order, and looks up its own."""

    def __init__(self, table: torch.Tensor, dtype: torch.dtype, collectives: Collectives) -> None:
        """table: this rank's rows; each rank has as many."""
        self._table = table
        self._dtype = dtype
        self._first = collectives.ranks.rank * len(table)
        self._all_reduce = collectives.all_reduce

    def __call__(self, indices: torch.Tensor) -> torch.Tensor:
        """See Embedding."""
        indices = indices - self._first
        is_own = (indices >= 0) & (indices < len(self._table))
        rows = torch.index_select(self._table, 0, torch.where(is_own, indices, 0)).to(self._dtype)
        return self._all_reduce(rows.mul_(is_own[:, None]))


def vocabulary_embedding(
    table: torch.Tensor, dtype: torch.dtype, collectives: Collectives
) -> Embedding | SharedEmbedding:
    """The look-up in a table with a row for each token of the vocabulary, or with this rank's share of them."""
    return Embedding(table, dtype) if collectives.ranks.is_alone else SharedEmbedding(table, dtype, collectives)
