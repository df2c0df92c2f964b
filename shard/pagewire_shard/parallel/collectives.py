"""What ranks do together in a step. A shard that is alone never calls any of it, and loads no torch.distributed."""

from typing import Protocol

import torch

from pagewire_shard.parallel.ranks import ALONE, Ranks


class Collectives(Protocol):
    """Operations that all ranks of a group call in the same order. Every rank gets the same bits, and the bits of an
    element depend on nothing but that element on each rank."""

    ranks: Ranks

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks of a contiguous x; may overwrite x."""

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """[size, *x.shape]: the contiguous x of every rank, in their order."""


class Alone(Collectives):
    """The one rank of a group of one."""

    def __init__(self) -> None:
        self.ranks = ALONE

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """See Collectives."""
        return x

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """See Collectives."""
        return x[None]
