"""The thread that owns the device, as the event loop sees it: commands go in, messages come out through the sink."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from pagewire.v1 import shard_pb2

from pagewire_shard.stepping.step_commands import BeginEpoch, Command, EndEpoch, EpochSink, EpochStart, RunPlan, Stop
from pagewire_shard.stepping.step_engine import StepEngine
from pagewire_shard.stepping.step_loop import GroupRole, StepLoop
from pagewire_shard.stepping.step_observer import StepObserver
from pagewire_shard.stepping.step_stats import StepStats


class StepThread:
    """Builds the engine in a thread of its own, so that the device has one owner from the first allocation on.

    A daemon thread: a step that hangs for ever must not keep the process from ending.
    """

    def __init__(
        self,
        build_engine: Callable[[], StepEngine[Any]],
        observer: StepObserver | None = None,
        role: GroupRole | None = None,
    ) -> None:
        """role: in a group of several ranks; None: the shard is alone."""
        self.ready: Future[shard_pb2.ShardInfo] = Future()
        """The engine's info, once it is built; or the error that kept it from being built."""
        self.stats = StepStats()
        self._build_engine = build_engine
        self._observer = observer
        self._role = role
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="step", daemon=True)

    def start(self) -> None:
        """Starts building the engine."""
        self._thread.start()

    def begin_epoch(self, sink: EpochSink, max_inflight: int, epoch: int = 0) -> "Future[EpochStart]":
        """Ends the current epoch after its running steps and begins the sink's. Fails with ShardUnavailable.

        epoch: its number, by which the ranks of a group know it.
        """
        reply: Future[EpochStart] = Future()
        # A call that is cancelled while it waits must not cancel what the step thread is about to answer.
        reply.set_running_or_notify_cancel()
        self._put(BeginEpoch(sink, max_inflight, reply))
        return reply

    def submit(self, sink: EpochSink, plan: shard_pb2.StepPlan) -> None:
        """Queues a plan of the sink's epoch."""
        self._put(RunPlan(sink, plan, time.monotonic()))

    def end_epoch(self, sink: EpochSink) -> None:
        """Ends the sink's epoch, unless another has begun since."""
        self._put(EndEpoch(sink))

    def stop(self) -> None:
        """Ends the thread after the running steps; does not wait for it."""
        self._put(Stop())

    def join(self, timeout_s: float) -> bool:
        """Waits for the end of the thread. False: it is still busy."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _put(self, command: Command) -> None:
        # Before the command is put: the thread clears it when it takes one.
        if self.stats.asked_s is None:
            self.stats.asked_s = time.monotonic()
        self._commands.put(command)

    def _run(self) -> None:
        self.ready.set_running_or_notify_cancel()
        try:
            engine = self._build_engine()
        except Exception as error:  # handed over to whoever waits for `ready`
            self.ready.set_exception(error)
            return
        except BaseException as error:  # such as SystemExit, which would end the event loop that waits, without a word
            self.ready.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))
            return
        self.ready.set_result(engine.info)
        StepLoop(engine, self._commands, self.stats, self._observer, self._role).run()
