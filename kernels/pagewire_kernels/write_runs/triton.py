"""write_runs on a GPU: all tables in one launch."""

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl

from pagewire_kernels.write_runs import runs as layout

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

HEADER_WORDS = tl.constexpr(layout.HEADER_WORDS)
TABLE, TARGET = tl.constexpr(layout.TABLE), tl.constexpr(layout.TARGET)
LENGTH, SOURCE = tl.constexpr(layout.LENGTH), tl.constexpr(layout.SOURCE)
_BLOCK = 1024
"""Words that a program copies at once: 8 for each thread of 4 warps."""
_NUM_WARPS = 4


@triton.jit(do_not_specialize=["num_runs"])
def write_runs_kernel(base_ptr, offsets_ptr, runs_ptr, num_runs, BLOCK: tl.constexpr):
    """Grid: (num_runs, num_parts); programs (run, part) share out a run in tiles of BLOCK words.

    Table t starts offsets[t] words after base.
    """
    header = runs_ptr + tl.program_id(0) * HEADER_WORDS
    part = tl.program_id(1)
    length = tl.load(header + LENGTH)
    target = base_ptr + tl.load(offsets_ptr + tl.load(header + TABLE)) + tl.load(header + TARGET).to(tl.int64)
    source = runs_ptr + num_runs * HEADER_WORDS + tl.load(header + SOURCE)
    for first in range(part * BLOCK, length, tl.num_programs(1) * BLOCK):
        word = first + tl.arange(0, BLOCK)
        mask = word < length
        tl.store(target + word, tl.load(source + word, mask=mask), mask=mask)


@lru_cache(maxsize=8)
def _offset_table(addresses: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Returns [num_tables] int64, the words from the first table to each; built once for a set of tables."""
    return torch.tensor([(address - addresses[0]) // 4 for address in addresses], device=device)


def write_runs(tables: Sequence[torch.Tensor], runs: torch.Tensor, num_runs: int, max_len: int) -> None:
    """See the package."""
    base = tables[0].view(-1).view(torch.int32)
    offsets = _offset_table(tuple([table.data_ptr() for table in tables]), runs.device)
    grid = (num_runs, triton.cdiv(max_len, _BLOCK))
    write_runs_kernel[grid](base, offsets, runs, num_runs, BLOCK=_BLOCK, num_warps=_NUM_WARPS)
