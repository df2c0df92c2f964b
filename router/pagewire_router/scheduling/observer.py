"""The interface by which a scheduler reports its decisions, for tracing."""

from pagewire.v1 import shard_pb2

from pagewire_router.scheduling.plans import PlanInFlight
from pagewire_router.scheduling.sequence import SequenceGroup


class SchedulerObserver:
    """Is called as the scheduler decides. This one ignores everything."""

    def on_plan(self, plan: PlanInFlight) -> None:
        """A plan was made."""

    def on_result(self, plan: PlanInFlight, result: shard_pb2.StepResult) -> None:
        """The result of a plan is back; the sequences have not taken it in yet."""

    def on_preempted(self, group: SequenceGroup) -> None:
        """A running request was released, to be admitted again: for want of blocks, or after a wrong guess."""

    def on_finished(self, group: SequenceGroup) -> None:
        """All sequences of a request have ended."""
