"""Writes of host values into tables that have one row for each slot: collected while a step is prepared, then done in
one upload and one launch, whatever they are."""

from array import array
from collections.abc import Iterable
from collections.abc import Sequence as Items
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from pagewire_kernels.write_runs import HEADER_WORDS, write_runs

_WORD_BYTES = 4
_TYPECODES = {torch.int32: "i", torch.int64: "q", torch.float32: "f"}


Values = Items[int] | Items[float] | npt.NDArray[np.int32]


class Upload(Protocol):
    """Brings values to the device."""

    def __call__(self, values: Values, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """The values as a one-dimensional tensor. Those of an array are of the dtype, and the array is not changed."""


class SlotTables:
    """The tables of all slots, and what is to be written to them. No two writes between two flushes overlap."""

    def __init__(self, tables: Iterable[torch.Tensor]) -> None:
        """tables: [num_slots, ...], contiguous, int32, int64 or float32, on one device."""
        self._tables = list(tables)
        self._shapes = {
            id(table): (index, table.stride(0) * (words := table.itemsize // _WORD_BYTES), words)
            for index, table in enumerate(self._tables)
        }
        """By table: its index, words of a row, words of an element."""
        assert all(table.nbytes // _WORD_BYTES < 1 << 31 for table in self._tables), "addresses are of 32 bits"
        self._headers = array("i")
        self._words = array("i")
        self._max_len = 0

    def write(self, table: torch.Tensor, slot: int, values: list[int] | list[float], column: int = 0) -> None:
        """Has the next flush write values to a slot's row, from a column on."""
        self.write_bits(table, slot, array(_TYPECODES[table.dtype], values), column)

    def write_bits(self, table: torch.Tensor, slot: int, values: "array[int] | array[float]", column: int = 0) -> None:
        """As write, of the bits of values of any type."""
        index, row_words, element_words = self._shapes[id(table)]
        num_words = len(values) * values.itemsize // _WORD_BYTES
        if num_words == 0:
            return
        assert column * element_words + num_words <= row_words, (
            f"{num_words} words from column {column} on leave the row"
        )
        self._headers.extend((index, slot * row_words + column * element_words, num_words, len(self._words)))
        self._words.frombytes(values.tobytes())
        if num_words > self._max_len:
            self._max_len = num_words

    def discard(self) -> None:
        """Forgets what is to be written."""
        self._headers, self._words, self._max_len = array("i"), array("i"), 0

    def flush(self, upload: Upload) -> None:
        """Writes everything."""
        if not self._headers:
            return
        num_runs, max_len = len(self._headers) // HEADER_WORDS, self._max_len
        runs = upload(self._headers + self._words, torch.int32)
        self.discard()
        write_runs(self._tables, runs, num_runs, max_len)
