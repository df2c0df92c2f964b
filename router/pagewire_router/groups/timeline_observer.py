"""Writes what a scheduler decides about traced requests into their timelines."""

from collections.abc import Iterable

from pagewire.v1 import shard_pb2

from pagewire_router.request import Request
from pagewire_router.scheduling.observer import SchedulerObserver
from pagewire_router.scheduling.plans import PlanInFlight
from pagewire_router.scheduling.sequence import SequenceGroup
from pagewire_router.timeline import Admitted, ChunkDone, ChunkPlanned, Ended, FailedOver, Preempted, Queued


class TimelineObserver(SchedulerObserver):
    """Notes decisions in timelines. A request that is not traced costs one comparison for each decision."""

    def on_plan(self, plan: PlanInFlight) -> None:
        """Notes admissions and chunks."""
        for leader in plan.admitted:
            timeline = leader.group.request.timeline
            if timeline is not None:
                timeline.note(Admitted(plan.step, len(leader.token_ids)))
        for row in plan.prefill_rows:
            sequence = plan.sequences[row]
            timeline = sequence.group.request.timeline
            if timeline is not None:
                timeline.note(ChunkPlanned(plan.step, sequence.index, plan.num_scheduled_tokens[row]))

    def on_result(self, plan: PlanInFlight, result: shard_pb2.StepResult) -> None:
        """Notes chunks that are done."""
        for row in plan.prefill_rows:
            sequence = plan.sequences[row]
            timeline = sequence.group.request.timeline
            if timeline is not None:
                cached = dict(zip(result.first_run_indices, result.num_cached_tokens, strict=True))
                done = ChunkDone(
                    step=plan.step,
                    index=sequence.index,
                    num_computed=result.num_computed_tokens[row],
                    num_cached=cached.get(row),
                    has_sampled=bool(result.num_sampled_tokens[row]),
                )
                timeline.note(done)

    def on_preempted(self, group: SequenceGroup) -> None:
        """Notes a preemption."""
        if group.request.timeline is not None:
            group.request.timeline.note(Preempted(group.num_output_tokens))

    def on_finished(self, group: SequenceGroup) -> None:
        """Notes the end of a request."""
        if group.request.timeline is not None:
            group.request.timeline.note(Ended(group.num_output_tokens))


def note_queued(request: Request, group_id: str) -> None:
    """Records in a request's timeline that it waits for a shard group."""
    if request.timeline is not None:
        request.timeline.note(Queued(group_id))


def note_failover(groups: Iterable[SequenceGroup]) -> None:
    """Records in the timelines of running requests that they have to be admitted again."""
    for group in groups:
        if group.request.timeline is not None:
            group.request.timeline.note(FailedOver(group.num_output_tokens))
