"""The definition of copy_blocks. It serves CPUs too: forks are rare, and torch copies contiguous blocks fast enough."""

from collections.abc import Sequence

import torch


def copy_blocks(caches: Sequence[tuple[torch.Tensor, ...]], source_ids: torch.Tensor, target_ids: torch.Tensor) -> None:
    """cache[target] = cache[source] for every copy, in every cache."""
    for layer in caches:
        for cache in layer:
            cache.index_copy_(0, target_ids, cache.index_select(0, source_ids))
