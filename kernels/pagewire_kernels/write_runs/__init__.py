"""Writes runs of words into tables: what a step changes in the tables of all slots, in one launch."""

from collections.abc import Callable, Sequence
from functools import cache

import torch

from pagewire_kernels.write_runs.runs import HEADER_WORDS, LENGTH, SOURCE, TABLE, TARGET

__all__ = ["HEADER_WORDS", "LENGTH", "SOURCE", "TABLE", "TARGET", "write_runs"]


def write_runs(tables: Sequence[torch.Tensor], runs: torch.Tensor, num_runs: int, max_len: int) -> None:
    """Writes each run into its table, in place.

    Args:
        tables: Contiguous, of elements of 4 or 8 bytes, on one device. What is written is words of 4 bytes.
        runs: [num_words] int32, on the tables' device: num_runs headers, then the words of the runs. A header is TABLE,
            the table's index; TARGET, the word of the table at which the run begins; LENGTH, the run's words; SOURCE,
            where they begin behind the headers. No two runs write to the same place.
        max_len: The largest LENGTH.

    reference.py is the definition of correct.
    """
    if num_runs:
        _backend(runs.device.type)(tables, runs, num_runs, max_len)


@cache
def _backend(device_type: str) -> Callable[[Sequence[torch.Tensor], torch.Tensor, int, int], None]:
    if device_type == "cuda":
        from pagewire_kernels.write_runs.triton import write_runs as triton_kernel

        return triton_kernel
    from pagewire_kernels.write_runs.reference import write_runs as reference

    return reference
