"""What a scheduler has decided about traced requests, until somebody with a clock takes note of it."""

from typing import TYPE_CHECKING

from pagewire.v1 import shard_pb2

from pagewire_router.scheduling.sequence import Sequence, SequenceGroup
from pagewire_router.timeline import Admitted, ChunkDone, ChunkPlanned, Ended, Happening, Preempted, Timeline

if TYPE_CHECKING:
    from pagewire_router.scheduling.step_records import PlanInFlight


class SchedulingReports:
    """Costs a request that is not traced one comparison at each of these points, and none for its tokens."""

    def __init__(self) -> None:
        self._pending: list[tuple[Timeline, Happening]] = []

    def take_note(self) -> None:
        """Writes what was decided into the requests' timelines, with the time of this call."""
        if self._pending:
            for timeline, happening in self._pending:
                timeline.note(happening)
            self._pending.clear()

    def on_admit(self, leader: Sequence, step: int) -> None:
        """A group enters the plan of this step by its longest sequence."""
        timeline = leader.group.request.timeline
        if timeline is not None:
            self._pending.append((timeline, Admitted(step, len(leader.token_ids))))

    def on_chunk(self, sequence: Sequence, budget: int, record: "PlanInFlight") -> None:
        """The plan runs a sequence that prefills; it was just added to the plan's record."""
        timeline = sequence.group.request.timeline
        if timeline is not None:
            record.traced_chunks.append(len(record.sequences) - 1)
            self._pending.append((timeline, ChunkPlanned(record.step, sequence.index, budget)))

    def on_result(self, record: "PlanInFlight", result: shard_pb2.StepResult) -> None:
        """The result of a plan with traced chunks is back."""
        cached = dict(zip(result.first_run_indices, result.num_cached_tokens, strict=True))
        for i in record.traced_chunks:
            sequence = record.sequences[i]
            timeline = sequence.group.request.timeline
            assert timeline is not None
            done = ChunkDone(
                step=record.step,
                index=sequence.index,
                num_computed=result.num_computed_tokens[i],
                num_cached=cached.get(i),
                has_sampled=bool(result.num_sampled_tokens[i]),
            )
            self._pending.append((timeline, done))

    def on_preempt(self, group: SequenceGroup) -> None:
        """A running group was released, to be admitted again."""
        timeline = group.request.timeline
        if timeline is not None:
            self._pending.append((timeline, Preempted(group.num_output_tokens)))

    def on_end(self, group: SequenceGroup) -> None:
        """All sequences of a group have ended."""
        timeline = group.request.timeline
        if timeline is not None:
            self._pending.append((timeline, Ended(group.num_output_tokens)))
