"""The commands of the event loop to the step thread, and the messages that come back."""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from pagewire.v1 import shard_pb2

from pagewire_shard.errors import StreamError


class EpochSink(Protocol):
    """The receiver of an epoch's messages. Called on the step thread; must not wait."""

    def post(self, message: bytes, *, is_result: bool) -> None:
        """Takes a serialized ShardMessage for the router; is_result: it answers a plan."""

    def fail(self, error: StreamError) -> None:
        """Takes the end of the epoch; nothing more comes."""


@dataclass(frozen=True, slots=True)
class EpochStart:
    """The engine's state when an epoch begins."""

    free_blocks: list[int]
    """Free blocks of each cache group."""
    cached_hashes: list[int]
    """Wire hash of every block in the prefix index."""


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
