"""The seam between the step thread and whoever watches what it runs."""

from typing import Protocol

from pagewire.v1 import shard_pb2

from pagewire_shard.errors import StreamError


class StepObserver(Protocol):
    """Told of every plan and every result, on the step thread: it must be quick, and must not raise."""

    def on_plan(self, plan: shard_pb2.StepPlan) -> None:
        """The plan is about to be applied and launched."""

    def on_result(self, result: shard_pb2.StepResult) -> None:
        """The oldest of the launched steps is done."""

    def on_epoch_end(self, error: StreamError | None) -> None:
        """All sequences are dropped: the router let go of the shard, or because of the error."""
