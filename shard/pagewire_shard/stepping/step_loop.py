"""The loop of the step thread: it takes commands, launches plans, collects results and shows that it is alive.

The order of work within an epoch whose window is `max_inflight` steps:

1. the oldest pending step is ready: collect it and post its result (on a CPU every launched step is);
2. a plan waits and the window has room: launch it (on a GPU: while the step before it runs); if what it may sample
   follows from tokens that are still to come, collect all steps before it, and launch its sampling last;
3. the window is full: wait for the oldest step, nothing else could be done;
4. otherwise: wait for a command, and for the oldest pending step, whichever comes first.
"""

import logging
import queue
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pagewire.v1 import shard_pb2

from pagewire_shard.errors import PlanRefused, RankRefused, ShardUnavailable, StepFailed, StreamError, status_code
from pagewire_shard.stepping.step_commands import BeginEpoch, Command, EndEpoch, EpochSink, EpochStart, RunPlan, Stop
from pagewire_shard.stepping.step_engine import PendingStep, StepEngine
from pagewire_shard.stepping.step_observer import StepObserver
from pagewire_shard.stepping.step_stats import StepStats

logger = logging.getLogger(__name__)

HEARTBEAT_INTERVAL_S = 1.0
READY_POLL_S = 100e-6
"""How often a running step is asked whether it is ready while the window has room for another plan."""


@dataclass(frozen=True, slots=True)
class _Launched:
    pending: PendingStep
    queue_us: int
    num_queried_tokens: int
    """Tokens of the sequences that its plan admitted."""


@dataclass(frozen=True, slots=True)
class GroupRole:
    """A shard's part in a group of several ranks, which all run the same steps."""

    reports_tokens: bool
    """Whether results hold tokens; else they hold what the router compares with the results of the rank that does."""
    on_broken: Callable[[str], None]
    """Takes why a step broke; does not return. The other ranks may wait in that step for ever, so the group is lost."""


class StepLoop:
    """Runs plans on an engine, in the thread that calls run()."""

    def __init__(
        self,
        engine: StepEngine[Any],
        commands: "queue.SimpleQueue[Command]",
        stats: StepStats,
        observer: StepObserver | None = None,
        role: GroupRole | None = None,
    ) -> None:
        """role: in a group of several ranks; None: the shard is alone."""
        self._engine = engine
        self._role = role
        self._observer = observer
        self._commands = commands
        self._stats = stats
        self._sink: EpochSink | None = None
        self._max_inflight = 1
        self._plans: deque[RunPlan] = deque()
        self._launched: deque[_Launched] = deque()
        self._last_step = 0
        self._heartbeat_due_s = 0.0
        self._shown_progress_s = 0.0
        """The value of progress_s at the last heartbeat."""
        self._stopped = False
        engine.watch_progress(self._on_progress)

    def run(self) -> None:
        """Runs until Stop. An unexpected error ends the epoch, not the loop."""
        while not self._stopped:
            try:
                self._take_commands()
                self._do_next()
                self._show_alive()
            except BaseException as error:  # whatever a model or a device can raise; this thread has to go on
                self._break(error)
            self._stats.busy = bool(self._plans or self._launched)

    def _do_next(self) -> None:
        if self._oldest_is_ready():
            self._collect()
        elif self._plans and len(self._launched) < self._max_inflight:
            self._launch(self._plans.popleft())
        elif len(self._launched) == self._max_inflight:
            self._collect()

    def _oldest_is_ready(self) -> bool:
        return bool(self._launched) and self._launched[0].pending.is_ready()

    def _take_commands(self) -> None:
        try:
            command = self._commands.get(timeout=self._patience_s())
            if not self._stats.busy:
                self._progress()
                self._stats.busy = True
            self._apply(command)
            while not self._stopped:
                self._apply(self._commands.get_nowait())
        except queue.Empty:
            pass

    def _patience_s(self) -> float | None:
        """How long to wait for a command; None: until one comes."""
        if self._plans or len(self._launched) == self._max_inflight or self._oldest_is_ready():
            return 0.0
        if self._launched:
            return READY_POLL_S
        if self._sink is not None:
            return max(self._heartbeat_due_s - time.monotonic(), 0.0)
        return None

    def _apply(self, command: Command) -> None:
        self._stats.asked_s = None
        match command:
            case RunPlan():
                if command.sink is self._sink:
                    self._plans.append(command)
            case BeginEpoch():
                self._begin(command)
            case EndEpoch():
                if command.sink is self._sink:
                    self._end()
            case Stop():
                self._stopped = True
                self._end()

    def _begin(self, command: BeginEpoch) -> None:
        try:
            self._end()
            free_blocks = self._engine.begin_epoch(command.max_inflight)
            start = EpochStart(free_blocks, self._engine.cached_hashes())
        except BaseException as error:  # a device that broke earlier shows it here
            logger.exception("no epoch can begin")
            if self._role is not None:
                self._role.on_broken(f"no epoch can begin: {_one_line(error)}")
            self._stats.failed = self._stats.broken = True
            self._launched.clear()
            command.reply.set_exception(ShardUnavailable(f"the shard cannot begin an epoch: {_one_line(error)}"))
            return
        self._sink, self._max_inflight, self._last_step = command.sink, command.max_inflight, 0
        self._stats.broken = False
        self._stats.free_blocks, self._stats.num_cached_blocks = free_blocks, len(start.cached_hashes)
        self._progress()
        command.reply.set_result(start)

    def _launch(self, command: RunPlan) -> None:
        queue_s = time.monotonic() - command.arrived_s
        if self._observer is not None:
            self._observer.on_plan(command.plan)
        try:
            pending = self._engine.launch(command.plan)
        except PlanRefused as refusal:
            if self._role is not None and isinstance(refusal, RankRefused):
                raise  # the other ranks wait for this one in the step: a refusal has to be that of all
            self._refuse(command.plan.step, refusal)
        else:
            num_queried_tokens = sum(len(admit.token_ids) for admit in command.plan.admits)
            self._launched.append(_Launched(pending, int(queue_s * 1e6), num_queried_tokens))
            self._progress()
            if pending.awaits_tokens:
                while len(self._launched) > 1:
                    self._collect()
                self._engine.sample(pending)

    def _collect(self) -> None:
        launched = self._launched.popleft()
        result = self._engine.collect(launched.pending)
        result.timings.queue_us = launched.queue_us
        self._post_result(result)
        self._last_step = result.step
        if self._observer is not None:
            self._observer.on_result(result)
        self._stats.add(result, num_tokens=launched.pending.num_tokens, num_queried_tokens=launched.num_queried_tokens)
        self._progress()

    def _post_result(self, result: shard_pb2.StepResult) -> None:
        if self._role is not None and not self._role.reports_tokens:
            result = shard_pb2.StepResult(step=result.step, state_digest=result.state_digest)
        self._post(shard_pb2.ShardMessage(result=result))

    def _refuse(self, step: int, refusal: PlanRefused) -> None:
        self._stats.num_refused_plans += 1
        while self._launched:
            self._collect()
        self._post(_error_message(step, refusal))
        self._fail(refusal)

    def _break(self, error: BaseException) -> None:
        """After an unexpected error: steps that were launched are lost with it."""
        self._stats.failed = True
        self._stats.num_failed_steps += 1
        self._stats.num_failed_in_a_row += 1
        self._log_failure(error)
        if self._role is not None:
            self._role.on_broken(f"step {self._last_step + 1} broke: {_one_line(error)}")
        self._launched.clear()
        failure = StepFailed(f"step {self._last_step + 1} broke: {_one_line(error)}")
        self._post(_error_message(self._last_step + 1, failure))
        try:
            self._fail(failure)
            self._engine.reset_cache()
            self._stats.num_cached_blocks = 0
        except BaseException:  # the device may be gone for good
            logger.exception("the engine cannot be cleared")

    def _log_failure(self, error: BaseException) -> None:
        """With a traceback, unless the step before failed too."""
        if self._stats.num_failed_in_a_row == 1:
            logger.error("the epoch broke after step %d", self._last_step, exc_info=error)
        else:
            num_failed = self._stats.num_failed_in_a_row
            logger.error("the epoch broke again, %d times in a row: %s", num_failed, _one_line(error))

    def _fail(self, error: StreamError) -> None:
        sink = self._sink
        if sink is not None:
            sink.fail(error)
            self._end(error)

    def _end(self, error: StreamError | None = None) -> None:
        """Ends the current epoch: plans that wait are dropped; running steps are waited for, their results dropped."""
        if self._role is not None and error is None and not self._stopped:
            self._run_waiting_plans()
        if self._sink is None:
            return
        self._sink = None
        self._plans.clear()
        while self._launched:
            self._collect()
        if self._observer is not None:
            self._observer.on_epoch_end(error)
        self._stats.free_blocks = self._engine.end_epoch()
        self._stats.num_cached_blocks = len(self._engine.cached_hashes())
        self._progress()

    def _run_waiting_plans(self) -> None:
        """In a group, where other ranks may have begun to run them. A refusal ends the epoch, on all at one plan."""
        while self._plans:
            if len(self._launched) == self._max_inflight:
                self._collect()
            self._launch(self._plans.popleft())

    def _on_progress(self) -> None:
        """From within a step: steps may take long on a CPU."""
        now_s = self._stats.progress_s = time.monotonic()
        if now_s >= self._heartbeat_due_s:
            self._show_alive()

    def _show_alive(self) -> None:
        """A heartbeat a second; while plans wait or run, only if something has moved since the last one."""
        now = time.monotonic()
        if self._sink is None or now < self._heartbeat_due_s:
            return
        if not (self._plans or self._launched) or self._stats.progress_s > self._shown_progress_s:
            self._shown_progress_s = self._stats.progress_s
            beat = shard_pb2.Heartbeat(last_step=self._last_step, num_queued_plans=len(self._plans))
            self._post(shard_pb2.ShardMessage(heartbeat=beat), is_result=False)
            self._heartbeat_due_s = now + HEARTBEAT_INTERVAL_S

    def _post(self, message: shard_pb2.ShardMessage, *, is_result: bool = True) -> None:
        if self._sink is not None:
            self._sink.post(message.SerializeToString(), is_result=is_result)

    def _progress(self) -> None:
        self._stats.progress_s = time.monotonic()


def _error_message(step: int, error: StreamError) -> shard_pb2.ShardMessage:
    code: int = status_code(error).value[0]
    result = shard_pb2.StepResult(step=step, error=shard_pb2.PlanError(code=code, message=error.message))
    return shard_pb2.ShardMessage(result=result)


def _one_line(error: BaseException) -> str:
    """The type and the first line of an error, short enough for a status message."""
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:500]
