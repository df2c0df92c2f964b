"""Writes of host values into tables that have one row for each slot, in a number of operations that does not depend on
how many rows are written."""

from collections.abc import Sequence as Items
from itertools import chain
from typing import Protocol

import torch


class Upload(Protocol):
    """Brings values to the device."""

    def __call__(self, values: Items[int] | Items[float], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """The values as a one-dimensional tensor."""


def write_rows(
    table: torch.Tensor, slots: torch.Tensor, rows: list[list[int]] | list[list[float]], upload: Upload
) -> None:
    """Writes rows[i] to the table's row slots[i]."""
    flat = upload(list(chain.from_iterable(rows)), table.dtype)
    table.index_copy_(0, slots, flat.view(len(rows), -1))


def write_runs(
    table: torch.Tensor,
    slots: torch.Tensor,
    runs: list[list[int]] | list[list[float]],
    upload: Upload,
    start: int = 0,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes runs[i] to the table's row slots[i], from column `start` on.

    Args:
        dtype: What the runs are made of; its bits are written to a table of another type. None: as the table.
    """
    total = sum(map(len, runs))
    if not total:
        return
    lens = upload([len(run) for run in runs])
    # Flat index of each run's first element, less the number of elements in the runs before it.
    origins = slots * table.shape[1] + start - (lens.cumsum(0) - lens)
    places = torch.repeat_interleave(origins, lens, output_size=total)
    places += torch.arange(total, device=table.device)
    values = upload(list(chain.from_iterable(runs)), dtype or table.dtype)
    table.view(-1).index_copy_(0, places, values.view(table.dtype))
