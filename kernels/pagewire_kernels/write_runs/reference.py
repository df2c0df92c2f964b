"""The definition of write_runs. It serves CPUs too, where a run is one copy of contiguous memory."""

from collections.abc import Sequence

import torch

from pagewire_kernels.write_runs.runs import HEADER_WORDS, TABLE


def write_runs(tables: Sequence[torch.Tensor], runs: torch.Tensor, num_runs: int, max_len: int) -> None:
    """Run by run."""
    first = num_runs * HEADER_WORDS
    words, headers = runs[first:].numpy(force=True), runs[:first].view(num_runs, HEADER_WORDS).tolist()
    targets = {
        index: tables[index].view(-1).view(torch.int32).numpy() for index in {header[TABLE] for header in headers}
    }
    for table, target, length, source in headers:
        assert length <= max_len, f"a run of {length} words"
        targets[table][target : target + length] = words[source : source + length]
