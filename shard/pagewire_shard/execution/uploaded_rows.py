"""The rows of a step where graphs read them: one buffer on the device, written by one upload before each step.

Whatever else graphs read that only the host knows should have a buffer like this one.
"""

from array import array
from collections.abc import Iterable

import torch

from pagewire_shard.engine.runner import RunBatch
from pagewire_shard.execution.host_transfer import Uplink

_NUM_COUNTS = 2
_COUNTS_SIZE = 8
"""Places of the counts, so that what follows them is aligned."""


class UploadedRows:
    """Slots and lengths of up to max_rows rows. Those behind a step's own are void: no tokens, the void slot."""

    def __init__(self, max_rows: int, void_slot: int, device: torch.device) -> None:
        self._max_rows = max_rows
        self._no_rows = array("q", [void_slot, 0, -1])
        self._buffer = torch.zeros(_COUNTS_SIZE + 3 * max_rows, dtype=torch.int64, device=device)
        self.row_counts = self._buffer[:_NUM_COUNTS]
        """[2] int64: rows, and how many of them, the first ones, are decodes."""
        self.slots, self.query_lens, self.sample_rows = self._buffer[_COUNTS_SIZE:].view(3, max_rows).unbind(0)
        """[max_rows] int64 each: sample_rows[i] is i if row i samples, else -1."""
        self.slots.fill_(void_slot)
        self.sample_rows.fill_(-1)
        self._uploaded: tuple[list[int], list[int], list[int]] = ([], [], [])
        """Slots, query lengths and sample lengths of the last upload."""

    def upload(self, batch: RunBatch, uplink: Uplink) -> None:
        """Makes the batch's rows those that graphs read. While nothing joins or leaves, decode steps have the same."""
        rows = (batch.slots, batch.query_lens, batch.sample_lens)
        if rows == self._uploaded:
            return
        num_void = self._max_rows - len(batch.slots)
        void_slot, no_tokens, no_sample = (value * num_void for value in (self._no_rows[i : i + 1] for i in range(3)))
        words = array("q", (len(batch.slots), batch.num_decodes, *[0] * (_COUNTS_SIZE - _NUM_COUNTS)))
        words += array("q", batch.slots) + void_slot
        words += array("q", batch.query_lens) + no_tokens
        words += array("q", _sample_rows(batch.sample_lens)) + no_sample
        uplink.upload(words, out=self._buffer)
        self._uploaded = rows


def _sample_rows(sample_lens: list[int]) -> Iterable[int]:
    if all(sample_lens):
        return range(len(sample_lens))
    return [row if samples else -1 for row, samples in enumerate(sample_lens)]
