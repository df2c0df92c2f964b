"""An engine whose plans and results are recorded. A shard without a recorder has none of this in its way."""

import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pagewire.v1 import shard_pb2

from pagewire_shard.engine.engine import Engine
from pagewire_shard.engine.launched_step import LaunchedStep
from pagewire_shard.recording.recorder import Recorder

logger = logging.getLogger(__name__)

T = TypeVar("T")


class RecordedEngine:
    """See StepEngine. What cannot be written, such as on a full disk, ends the recording and not the shard."""

    def __init__(self, engine: Engine, recorder: Recorder, shard: Mapping[str, Any]) -> None:
        """shard: see Recorder.begin."""
        self.info = engine.info
        self._engine = engine
        self._recorder: Recorder | None = recorder
        self._launched: deque[LaunchedStep] = deque()
        """Those that the engine has not collected."""
        self._results: dict[int, shard_pb2.StepResult] = {}
        """Of steps that were collected before they were asked for."""
        self._record(lambda recorder: recorder.begin(shard))

    def watch_progress(self, on_progress: Callable[[], None]) -> None:
        """See StepEngine."""
        self._engine.watch_progress(on_progress)

    def begin_epoch(self, max_inflight: int) -> list[int]:
        """See StepEngine."""
        self._forget_steps()
        num_cached = len(self._engine.cached_hashes())
        self._record(lambda recorder: recorder.on_epoch(max_inflight, num_cached))
        return self._engine.begin_epoch(max_inflight)

    def end_epoch(self) -> list[int]:
        """See StepEngine."""
        self._forget_steps()
        return self._engine.end_epoch()

    def reset_cache(self) -> None:
        """See StepEngine."""
        self._engine.reset_cache()

    def cached_hashes(self) -> list[int]:
        """See StepEngine."""
        return self._engine.cached_hashes()

    def launch(self, plan: shard_pb2.StepPlan) -> LaunchedStep:
        """See StepEngine."""
        if self._recorder is not None and self._recorder.is_full:
            self._begin_file()
        self._record(lambda recorder: recorder.on_plan(plan))
        launched = self._watched(lambda: self._engine.launch(plan))
        self._launched.append(launched)
        return launched

    def sample(self, pending: LaunchedStep) -> None:
        """See StepEngine."""
        self._watched(lambda: self._engine.sample(pending))

    def collect(self, pending: LaunchedStep) -> shard_pb2.StepResult:
        """See StepEngine."""
        early = self._results.pop(pending.step, None)
        return early if early is not None else self._collect()

    def _collect(self) -> shard_pb2.StepResult:
        launched = self._launched.popleft()
        result = self._watched(lambda: self._engine.collect(launched))
        self._record(lambda recorder: recorder.on_result(result))
        return result

    def _begin_file(self) -> None:
        """Once in thousands of steps: the device is idle until the next one."""
        while self._launched:
            result = self._collect()
            self._results[result.step] = result
        known, num_cached = self._engine.known_sequences(), len(self._engine.cached_hashes())
        self._record(lambda recorder: recorder.begin_file(known, num_cached))

    def _forget_steps(self) -> None:
        self._launched.clear()
        self._results.clear()

    def _watched(self, run: Callable[[], T]) -> T:
        try:
            return run()
        except BaseException as error:
            broken = error
            self._record(lambda recorder: recorder.on_broken(broken))
            raise

    def _record(self, write: Callable[[Recorder], None]) -> None:
        if self._recorder is None:
            return
        try:
            write(self._recorder)
        except (OSError, KeyError) as error:
            logger.warning("the flight recorder ends: %s: %s", type(error).__name__, error)
            self._recorder = None
