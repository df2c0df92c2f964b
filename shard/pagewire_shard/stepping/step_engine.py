"""The seam between the shard process and what it runs: the step thread on one side, the engine on the other."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from pagewire.v1 import shard_pb2


class PendingStep(Protocol):
    """A step that was launched and not yet collected."""

    step: int
    """The plan's number."""
    num_tokens: int
    """Tokens it computes."""

    @property
    def awaits_tokens(self) -> bool:
        """Its forward pass was launched; what it may sample follows from the tokens of all steps before it."""

    def is_ready(self) -> bool:
        """Whether the tokens are on the host, so that collecting does not wait. Always True on a CPU."""


PendingT = TypeVar("PendingT", bound=PendingStep)


class StepEngine(Protocol[PendingT]):
    """Applies step plans to the block pool and runs the model.

    Every method is called from the one thread that built the engine and owns the device; only `info` is read by others.
    """

    info: shard_pb2.ShardInfo
    """Fixed once the engine is built."""

    def watch_progress(self, on_progress: Callable[[], None]) -> None:
        """Has on_progress called from within long steps, whenever the calling thread gets on, such as for each layer.

        Called once, before the first epoch.
        """

    def begin_epoch(self, max_inflight: int) -> list[int]:
        """Drops all sequences and the names of grammars; cached blocks stay.

        max_inflight: plans that may be pending, from now on.

        Returns the free blocks, cached ones that nobody uses included, for each cache group.
        """

    def end_epoch(self) -> list[int]:
        """Drops all sequences and the names of grammars; cached blocks stay.

        Returns the free blocks, as begin_epoch.
        """

    def reset_cache(self) -> None:
        """Forgets all cached blocks: a step broke, so their content may never have been computed."""

    def cached_hashes(self) -> list[int]:
        """The first 8 bytes, little-endian, of the hash of every block in the prefix index."""

    def launch(self, plan: shard_pb2.StepPlan) -> PendingT:
        """Applies the plan and starts the forward pass; returns without waiting for the device.

        Raises PlanRefused with nothing applied.
        """

    def sample(self, pending: PendingT) -> None:
        """Launches the sampling of the newest step, which awaits tokens. Waits for those of the steps before it."""

    def collect(self, pending: PendingT) -> shard_pb2.StepResult:
        """Waits for the tokens of the oldest pending step and builds its result."""
