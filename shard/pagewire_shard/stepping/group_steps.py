"""Step threads of a group: rank 0 passes on what its step thread is told, and the others are told the same.

All ranks must run the same steps in the same order: one that lacks a plan leaves the others waiting in a collective.
Streams from the router end at different times on different ranks, and messages may be lost with them. So the router's
plans go to rank 0 alone, which passes them on as the same bytes, with the beginnings and ends of epochs between them,
in the order in which its own step thread gets them. What was passed on is run on all ranks, also if the router is gone
by then. The router's streams to the other ranks carry their answers: they post to the stream of the same epoch.
"""

import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from pagewire.v1 import shard_pb2

from pagewire_shard.errors import InvalidMessage, StaleEpoch, StreamError
from pagewire_shard.stepping.step_commands import BeginEpoch, Command, EndEpoch, EpochSink, EpochStart, RunPlan
from pagewire_shard.stepping.step_engine import StepEngine
from pagewire_shard.stepping.step_loop import GroupRole
from pagewire_shard.stepping.step_observer import StepObserver
from pagewire_shard.stepping.step_thread import StepThread

HEADER = struct.Struct("!BQ")
"""Kind of an entry, and number of its epoch."""
BEGIN, PLAN, END = range(3)


class LeadingSteps(StepThread):
    """The step thread of rank 0."""

    def __init__(
        self,
        build_engine: Callable[[], StepEngine[Any]],
        observer: StepObserver | None,
        pass_on: Callable[[bytes], None],
        on_broken: Callable[[str], None],
    ) -> None:
        """pass_on: sends an entry to all other ranks. on_broken: takes a step that broke; ends the process."""
        super().__init__(build_engine, observer, GroupRole(reports_tokens=True, on_broken=on_broken))
        self._pass_on = pass_on
        self._epochs: dict[EpochSink, int] = {}
        """Number of each epoch that has not ended."""

    def begin_epoch(self, sink: EpochSink, max_inflight: int, epoch: int = 0) -> "Future[EpochStart]":
        """See StepThread."""
        self._epochs[sink] = epoch
        self._pass_on(HEADER.pack(BEGIN, epoch) + bytes([max_inflight]))
        return super().begin_epoch(sink, max_inflight, epoch)

    def submit(self, sink: EpochSink, plan: shard_pb2.StepPlan) -> None:
        """See StepThread."""
        self._pass_on(HEADER.pack(PLAN, self._epochs[sink]) + plan.SerializeToString())
        super().submit(sink, plan)

    def end_epoch(self, sink: EpochSink) -> None:
        """See StepThread."""
        epoch = self._epochs.pop(sink, None)
        if epoch is not None:
            self._pass_on(HEADER.pack(END, epoch))
        super().end_epoch(sink)


class FollowingSteps(StepThread):
    """The step thread of another rank: what it is told comes from rank 0."""

    def __init__(
        self,
        build_engine: Callable[[], StepEngine[Any]],
        observer: StepObserver | None,
        on_broken: Callable[[str], None],
    ) -> None:
        """on_broken: takes a step that broke; ends the process."""
        super().__init__(build_engine, observer, GroupRole(reports_tokens=False, on_broken=on_broken))
        self._lock = threading.Lock()
        self._epochs: dict[int, _FollowedEpoch] = {}
        self._latest = 0
        """Number of the last epoch that rank 0 began."""

    def begin_epoch(self, sink: EpochSink, max_inflight: int, epoch: int = 0) -> "Future[EpochStart]":
        """Has the sink take the messages of an epoch. Its start is known when rank 0 has begun it, now or before."""
        with self._lock:
            followed = self._epoch(epoch)
            if epoch < self._latest:
                followed.give_up()
            followed.sink = sink
        return followed.start

    def submit(self, sink: EpochSink, plan: shard_pb2.StepPlan) -> None:
        """Refuses a plan that a router sends here, with InvalidMessage: this rank's come from rank 0."""
        raise InvalidMessage(f"step {plan.step} comes to another rank than 0, which passes plans on")

    def end_epoch(self, sink: EpochSink) -> None:
        """Has the sink take no more messages; the epoch itself is rank 0's to end."""
        with self._lock:
            for followed in self._epochs.values():
                if followed.sink is sink:
                    followed.sink = None

    def take_entry(self, entry: bytes) -> None:
        """Takes what rank 0 has passed on."""
        kind, number = HEADER.unpack_from(entry)
        payload = entry[HEADER.size :]
        with self._lock:
            followed = self._epoch(number)
            if kind == BEGIN:
                self._latest = number
                for old in [each for each in self._epochs if each < number]:
                    self._epochs.pop(old).give_up()
        command: Command
        if kind == BEGIN:
            command = BeginEpoch(followed, payload[0], followed.start)
        elif kind == PLAN:
            command = RunPlan(followed, shard_pb2.StepPlan.FromString(payload), time.monotonic())
        else:
            command = EndEpoch(followed)
        self._put(command)

    def _epoch(self, number: int) -> "_FollowedEpoch":
        return self._epochs.setdefault(number, _FollowedEpoch(number))


class _FollowedEpoch(EpochSink):
    """An epoch of rank 0, and the router's stream that takes this rank's messages, while there is one."""

    def __init__(self, number: int) -> None:
        self.sink: EpochSink | None = None
        self.start: Future[EpochStart] = Future()
        # A call that is cancelled while it waits must not cancel what the step thread is about to answer.
        self.start.set_running_or_notify_cancel()
        self._number = number

    def post(self, message: bytes, *, is_result: bool) -> None:
        """See EpochSink."""
        if (sink := self.sink) is not None:
            sink.post(message, is_result=is_result)

    def fail(self, error: StreamError) -> None:
        """See EpochSink."""
        if (sink := self.sink) is not None:
            sink.fail(error)

    def give_up(self) -> None:
        """Another epoch has begun: if this one has not, it never will."""
        if not self.start.done():
            self.start.set_exception(StaleEpoch(f"epoch {self._number} is over: rank 0 has begun another"))
