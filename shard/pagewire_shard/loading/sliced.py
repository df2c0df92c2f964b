"""What a rank holds of each of a decoder's parameters, and how it is copied from a tensor that has all of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pagewire_shard.layers.parameter import Parameter
from pagewire_shard.layers.rank_slice import RankSlice, Run, rank_slice
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.parallel.ranks import Ranks


@dataclass(frozen=True, slots=True)
class SlicedParameter:
    """A parameter, and what one rank holds of it."""

    whole: Parameter
    own: Parameter
    slice: RankSlice

    @classmethod
    def of(cls, whole: Parameter, own: Parameter, ranks: Ranks) -> "SlicedParameter":
        """own: the parameter of the rank's part of the decoder."""
        return cls(whole, own, rank_slice(whole, own, ranks))


def sliced_parameters(spec: DecoderSpec, own: DecoderSpec) -> dict[str, SlicedParameter]:
    """The parameters by name that a rank of a stage has something of.

    Args:
        spec: Of the whole decoder.
        own: Of what the rank has of it.
    """
    whole, ranks = spec.parameters(), own.ranks
    return {name: SlicedParameter.of(whole[name], part, ranks) for name, part in own.parameters().items()}


def copy_rows(
    value: torch.Tensor, runs: Sequence[Run], columns: Run | None, order: torch.Tensor | None, place: torch.Tensor
) -> None:
    """Copies some rows and columns of `value` to `place`, one run of rows after the other; zeroes the rest of `place`.

    Args:
        value: [num_rows] or [num_rows, num_columns]; or with one more dimension before these, whose entries count one
            under the other. No more of it is read than what is copied.
        runs: The rows to copy.
        columns: None: all. A bias has none.
        order: [num_rows]: which row of value stands for each row, always one of the same entry; None: they are in their
            order.
    """
    if columns is not None and place.ndim > 1:
        value = value.narrow(-1, *columns)
    # Putting the rows of all entries in a row would copy the entries if they are transposed.
    entries = value if value.ndim > place.ndim else value[None]
    num_each, end = entries.shape[1], 0
    for first, length in runs:
        while length:
            entry, row = divmod(first, num_each)
            count = min(length, num_each - row)
            if order is None:
                rows = entries[entry].narrow(0, row, count)
            else:
                rows = entries[entry][order[first : first + count] - entry * num_each]
            place.narrow(0, end, count).copy_(rows)
            first, length, end = first + count, length - count, end + count
    place[end:].zero_()
