"""Pipelines of processes, one for each stage: NCCL between GPUs, gloo between CPUs."""

from collections import deque
from datetime import timedelta
from typing import Any

import torch

from pagewire_shard.parallel.pipeline import Pipeline
from pagewire_shard.parallel.process_group import COLLECTIVE_TIMEOUT_S, dist, gloo_options
from pagewire_shard.parallel.stage import Stage

NUM_SEND_BUFFERS = 4
"""Messages that may wait for the next stage to take them, before the stage that computes them waits too."""


def process_pipeline(store: Any, stage: Stage, device: torch.device, address: str) -> Pipeline:
    """Joins the ranks of the other stages. All of them call this at the same time.

    Args:
        store: The torch.distributed.Store where they meet.
        address: Of this rank's interface that reaches the others; only gloo needs it.
    """
    if device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
        return NcclPipeline(dist.ProcessGroupNCCL(store, stage.index, stage.count, options), stage, device)
    return GlooPipeline(dist.ProcessGroupGloo(store, stage.index, stage.count, gloo_options(address)), stage)


class ProcessPipeline(Pipeline):
    """What both have in common."""

    def __init__(self, group: Any, stage: Stage, device: torch.device) -> None:
        """group: a torch.distributed.ProcessGroup, whose ranks are the stages."""
        self.stage = stage
        self._group = group
        self._device = device

    def least(self, value: int) -> int:
        """See Pipeline."""
        own = torch.tensor([value], device=self._device)
        values = own.new_empty(self.stage.count)
        self._group._allgather_base(values, own).wait()
        return int(values.min())


class GlooPipeline(ProcessPipeline):
    """Between CPUs."""

    def __init__(self, group: Any, stage: Stage) -> None:
        super().__init__(group, stage, torch.device("cpu"))
        self._sending: deque[tuple[Any, torch.Tensor]] = deque()

    def send(self, x: torch.Tensor) -> None:
        """See Pipeline; does not wait for the other side, as long as it is not far behind."""
        self._sending.append((self._group.send([x], self.stage.index + 1, 0), x))
        while len(self._sending) > NUM_SEND_BUFFERS:
            self._sending.popleft()[0].wait()

    def receive(self, out: torch.Tensor) -> None:
        """See Pipeline; waits for it."""
        self._group.recv([out], self.stage.index - 1, 0).wait()


class NcclPipeline(ProcessPipeline):
    """Between GPUs. The host never waits: the device's streams do."""

    def __init__(self, group: Any, stage: Stage, device: torch.device) -> None:
        super().__init__(group, stage, device)
        self._sending: deque[tuple[Any, torch.Tensor]] = deque()

    def send(self, x: torch.Tensor) -> None:
        """See Pipeline. Sends a copy, which is freed when a later message is sent."""
        if len(self._sending) == NUM_SEND_BUFFERS:
            # The current stream waits for the message, and torch's allocator knows nothing of the other stream.
            self._sending.popleft()[0].wait()
        copy = x.clone()
        self._sending.append((self._group.send([copy], self.stage.index + 1, 0), copy))

    def receive(self, out: torch.Tensor) -> None:
        """See Pipeline."""
        self._group.recv([out], self.stage.index - 1, 0).wait()
