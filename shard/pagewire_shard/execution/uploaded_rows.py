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

    def __init__(self, max_rows: int, void_slot: int, device: torch.device, scrap_slot: int | None = None) -> None:
        """scrap_slot: The state slot of void rows; None: the model has no recurrent state."""
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
        self._states: torch.Tensor | None = None
        """[2, max_rows] int32: the state slots that rows read, and those that they write; -1: zero."""
        self._no_state = array("i")
        if scrap_slot is not None:
            self._states = torch.full((2, max_rows), scrap_slot, dtype=torch.int32, device=device)
            self._no_state = array("i", [scrap_slot])
        self._uploaded_states: tuple[list[int], list[int]] = ([], [])

    def states(self, num_rows: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The state slots that the first rows read and write, as ForwardBatch.of takes them."""
        return None if self._states is None else (self._states[0, :num_rows], self._states[1, :num_rows])

    def upload(self, batch: RunBatch, uplink: Uplink) -> None:
        """Makes the batch's rows those that graphs read. While nothing joins or leaves, decode steps have the same."""
        if self._states is not None and (batch.read_slots, batch.write_slots) != self._uploaded_states:
            self._upload_states(batch.read_slots, batch.write_slots, uplink, self._states)
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

    def _upload_states(self, reads: list[int], writes: list[int], uplink: Uplink, out: torch.Tensor) -> None:
        no_state = self._no_state * (self._max_rows - len(reads))
        uplink.upload(array("i", reads) + no_state + array("i", writes) + no_state, torch.int32, out=out.view(-1))
        self._uploaded_states = (reads, writes)


def _sample_rows(sample_lens: list[int]) -> Iterable[int]:
    if all(sample_lens):
        return range(len(sample_lens))
    return [row if samples else -1 for row, samples in enumerate(sample_lens)]
