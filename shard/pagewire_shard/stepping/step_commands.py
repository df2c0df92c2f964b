"""What the event loop asks of the step thread, and what it is told."""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from pagewire.v1 import shard_pb2

from pagewire_shard.errors import StreamError


class EpochSink(Protocol):
    """Where an epoch's messages go. Called from the step thread; must not wait."""

    def post(self, message: bytes, *, is_result: bool) -> None:
        """A serialized ShardMessage for the router; is_result: it answers a plan."""

    def fail(self, error: StreamError) -> None:
        """The epoch has ended; nothing more comes."""


@dataclass(frozen=True, slots=True)
class EpochStart:
    """What the engine says when an epoch begins."""

    free_blocks: list[int]
    """For each cache group."""
    cached_hashes: list[int]
    """Of every block in the prefix index."""


@dataclass(frozen=True, slots=True, eq=False)
class BeginEpoch:
    """Ends the current epoch, if any, after its running steps; then starts another."""

    sink: EpochSink
    max_inflight: int
    reply: "Future[EpochStart]"


@dataclass(frozen=True, slots=True, eq=False)
class RunPlan:
    """A plan of the sink's epoch; ignored if that has ended."""

    sink: EpochSink
    plan: shard_pb2.StepPlan
    arrived_s: float


@dataclass(frozen=True, slots=True, eq=False)
class EndEpoch:
    """Ends the sink's epoch, if it is the current one."""

    sink: EpochSink


@dataclass(frozen=True, slots=True, eq=False)
class Stop:
    """Ends the loop after the running steps."""


Command = BeginEpoch | RunPlan | EndEpoch | Stop
