"""A rank's place in a pipeline: what it sends to the rank of the next stage and receives from the one before, and how
the stages learn what the last one has sampled.

Hidden states go from device to device: by NCCL between GPUs, by gloo between CPUs. Sampled tokens go from host to host,
with the connections over which plans are passed on: the router plans a token's successor only when it has the token, so
that the token is there before the plan that needs it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

import torch
from pagewire.v1 import shard_pb2

from pagewire_shard.parallel.stage import Stage


class Pipeline(Protocol):
    """The ranks of all stages that have one part of them each. Those of a stage call the same in the same order."""

    stage: Stage

    def send(self, x: torch.Tensor) -> None:
        """Sends a contiguous x to the next stage. It may be overwritten by later work on the device."""

    def receive(self, out: torch.Tensor) -> None:
        """Receives what the stage before sends; later work on the device finds it."""

    def least(self, value: int) -> int:
        """The least value of all stages, which call this at the same time."""


class TokenMail:
    """What the last stage's steps have yielded, on the way to the other stages: one message for each step, in order."""

    def __init__(self) -> None:
        self._messages: SimpleQueue[bytes] = SimpleQueue()

    def put(self, message: bytes) -> None:
        """Takes a message that has come; on any thread."""
        self._messages.put(message)

    @property
    def is_empty(self) -> bool:
        return self._messages.empty()

    def take(self) -> shard_pb2.StepResult:
        """The next step's tokens, as far as other stages need them; waits for them."""
        return shard_pb2.StepResult.FromString(self._messages.get())


@dataclass(frozen=True, slots=True)
class StageLinks:
    """A rank's connections to the other stages."""

    pipeline: Pipeline
    mail: TokenMail
    """What a stage before the last one is told of sampled tokens."""
    tell: Callable[[bytes], None] | None = None
    """Tells the other stages what a step has yielded; None: another rank does."""
