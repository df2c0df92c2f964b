"""Collectives between processes, one for each rank: NCCL between GPUs, gloo between CPUs."""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed

from pagewire_shard.parallel.collectives import Collectives
from pagewire_shard.parallel.ranks import Ranks

dist: Any = torch.distributed
"""Untyped: it does not export the types of what it is made of."""
COLLECTIVE_TIMEOUT_S = 600.0
"""Longest wait of one rank for the others in a collective. A rank that ends or hangs is noticed long before, by the
group's channel; this bounds the wait for one that is alive and does something else."""


def process_collectives(store: Any, ranks: Ranks, device: torch.device, address: str) -> "ProcessCollectives":
    """Joins the group. All its ranks call this at the same time.

    Args:
        store: The torch.distributed.Store where they meet.
        address: Of this rank's interface that reaches the others; only gloo needs it.
    """
    if device.type == "cuda":
        timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
        dist.init_process_group("nccl", store=store, rank=ranks.rank, world_size=ranks.size, timeout=timeout)
        return NcclCollectives(dist.group.WORLD, ranks)
    return GlooCollectives(dist.ProcessGroupGloo(store, ranks.rank, ranks.size, gloo_options(address)), ranks)


def gloo_options(address: str) -> Any:
    """Those of a process group that listens on this address. Gloo would take the interface of the host's name."""
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    options._timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
    return options


class ProcessCollectives(Collectives):
    """What both have in common."""

    def __init__(self, group: Any, ranks: Ranks) -> None:
        """group: a torch.distributed.ProcessGroup."""
        self.ranks = ranks
        self._group = group

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """See Collectives."""
        gathered = x.new_empty((self.ranks.size, *x.shape))
        self._group._allgather_base(gathered.flatten(0, 1), x).wait()
        return gathered


class GlooCollectives(ProcessCollectives):
    """Between CPUs. What all ranks have is added up on each of them in the order of the ranks: gloo's own sum takes
    another order for every size, so that a token's bits would depend on the batch."""

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """See Collectives."""
        parts = self.all_gather(x)
        total = parts[0]
        for part in parts[1:]:
            total += part
        return total


class NcclCollectives(ProcessCollectives):
    """Between GPUs."""

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """See Collectives."""
        self._group.allreduce([x]).wait()
        return x
