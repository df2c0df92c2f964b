"""Ranks of a group as threads of one process: each runs the same function with collectives of its own."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from pagewire_shard.parallel.collectives import Collectives
from pagewire_shard.parallel.ranks import Ranks

T = TypeVar("T")
TIMEOUT_S = 60.0


class ThreadCollectives(Collectives):
    """One thread's part of the exchange."""

    def __init__(self, ranks: Ranks, barrier: threading.Barrier, places: list[torch.Tensor | None]) -> None:
        self.ranks = ranks
        self._barrier = barrier
        self._places = places

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        assert x.is_contiguous()
        self._places[self.ranks.rank] = x
        self._barrier.wait()
        gathered = torch.stack([place for place in self._places if place is not None])
        self._barrier.wait()
        return gathered

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return self.all_gather(x).sum(0)


def on_all_ranks(size: int, function: Callable[[Collectives], T], *, by_expert: bool = False) -> list[T]:
    """What the function returns on each rank."""
    barrier = threading.Barrier(size, timeout=TIMEOUT_S)
    places: list[torch.Tensor | None] = [None] * size

    def run(rank: int) -> T:
        try:
            return function(ThreadCollectives(Ranks(rank, size, by_expert), barrier, places))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))
