"""The shard process from start to end: step thread and event loop up, serve, drain, down."""

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop
from pagewire_common.garbage import spare_long_lived_objects
from pagewire_common.loop_watchdog import LoopWatchdog
from pagewire_common.shutdown import Shutdown

from pagewire_shard.config import ShardConfig
from pagewire_shard.errors import BadOption, ModelError
from pagewire_shard.grammar.grammars import Grammars
from pagewire_shard.grammar.limits import GrammarLimits
from pagewire_shard.loading.model_source import model_digest, resolve_model
from pagewire_shard.parallel.shard_group import ShardGroup
from pagewire_shard.recording.recorder import Recorder
from pagewire_shard.stepping.group_steps import FollowingSteps, LeadingSteps
from pagewire_shard.stepping.step_engine import StepEngine
from pagewire_shard.stepping.step_observer import StepObserver
from pagewire_shard.stepping.step_thread import StepThread

if TYPE_CHECKING:
    from pagewire_common.tracing.exporting import Tracing

    from pagewire_shard.service.server import ShardServer

logger = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 10.0


def run(config: ShardConfig) -> int:
    """Serves until told to stop; returns the exit status. Raises ModelError for what keeps the shard from starting."""
    model_dir: Future[Path] = Future()
    # Nobody may take back what the step thread is about to answer.
    model_dir.set_running_or_notify_cancel()
    tracing = _open_tracing(config)
    grammars = _grammars(config)
    group = ShardGroup(config) if config.group_size > 1 else None
    recorder = _recorder(config)
    steps = _steps(lambda: _build(config, model_dir, grammars, group, recorder), _observer(tracing), group)
    # First of all: importing torch and loading weights take longest.
    steps.start()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config, model_dir, steps, grammars, group, recorder))
    except ModelError as error:
        print(f"error: {error.message}", file=sys.stderr)
        status = 1
    else:
        status = 0
    _leave(steps, tracing, status)
    return status


def _steps(build: Callable[[], StepEngine[Any]], observer: StepObserver | None, group: ShardGroup | None) -> StepThread:
    if group is None:
        return StepThread(build, observer)
    if group.is_leader:
        return LeadingSteps(build, observer, group.pass_on, group.lose)
    steps = FollowingSteps(build, observer, group.lose)
    group.on_entry = steps.take_entry
    return steps


def _build(
    config: ShardConfig,
    model_dir: "Future[Path]",
    grammars: Grammars | None,
    group: ShardGroup | None,
    recorder: Recorder | None,
) -> StepEngine[Any]:
    """Builds the engine on the step thread, since fetching a model takes long and probes need answers meanwhile."""
    try:
        directory = resolve_model(config.model, config.load_format)
    except BaseException as error:
        model_dir.set_exception(error)
        raise
    model_dir.set_result(directory)
    from pagewire_shard.startup import build_engine

    dummy_seed = config.seed if config.load_format == "dummy" else None
    digest = model_digest(directory, dummy_seed, config.hf_overrides)
    engine = build_engine(config, directory, digest, grammars, group)
    if recorder is None:
        return engine
    from pagewire_shard.recording.recorded_engine import RecordedEngine
    from pagewire_shard.recording.shard_facts import shard_facts

    return RecordedEngine(engine, recorder, shard_facts(config, engine))


async def _serve(
    config: ShardConfig,
    model_dir: "Future[Path]",
    steps: StepThread,
    grammars: Grammars | None,
    group: ShardGroup | None,
    recorder: Recorder | None,
) -> None:
    from pagewire_shard.service.server import ShardServer

    shutdown = Shutdown(with_parent=config.exit_with_parent)
    server = ShardServer(config, model_dir, steps, grammars, recorder)
    stopping = asyncio.ensure_future(shutdown.requested.wait())
    opening = asyncio.ensure_future(_open(server, config))
    watchdog = LoopWatchdog()
    try:
        address = await server.start()
        await asyncio.wait((opening, stopping), return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            opening.result()
            spare_long_lived_objects()
            watchdog.start()
            if group is not None:
                group.say_ready()
            print(f"pagewire-shard ready on {address}", flush=True)
            await stopping
    finally:
        opening.cancel()
        stopping.cancel()
        await server.stop(0.0 if shutdown.is_parent_gone else config.drain_grace_s)
        watchdog.stop()
        if group is not None:
            group.leave()


async def _open(server: "ShardServer", config: ShardConfig) -> None:
    try:
        await server.open()
    except ModelError:
        raise
    except Exception as error:  # whatever loading a model can raise
        logger.debug("the start failed", exc_info=True)
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise ModelError(
            f"model {config.model!r} cannot be started: {reason} (--log-level debug says where)"
        ) from error


def _grammars(config: ShardConfig) -> Grammars | None:
    if not config.structured_outputs:
        return None
    limits = GrammarLimits(
        compile_timeout_s=config.grammar_compile_timeout_s,
        compile_memory_bytes=config.grammar_compile_memory_bytes,
        cache_bytes=config.grammar_cache_memory_bytes,
    )
    return Grammars(limits, coerce_one_of=config.coerce_one_of, lenient=config.lenient_json_schemas)


def _recorder(config: ShardConfig) -> Recorder | None:
    if config.flight_recorder is None:
        return None
    try:
        return Recorder(config.flight_recorder, config.flight_recorder_bytes)
    except OSError as error:
        raise BadOption(f"--flight-recorder {config.flight_recorder}: {error.strerror}") from error


def _open_tracing(config: ShardConfig) -> "Tracing | None":
    """OpenTelemetry is not even imported unless traces are asked for."""
    if not config.trace_exporters:
        return None
    from pagewire_common.tracing.conventions import GROUP_ID, PP_RANK, TP_RANK
    from pagewire_common.tracing.exporting import open_tracing

    attributes = {GROUP_ID: config.group_id, TP_RANK: str(config.tp_rank), PP_RANK: str(config.pp_rank)}
    return open_tracing(config.trace_exporters, "pagewire-shard", attributes)


def _observer(tracing: "Tracing | None") -> StepObserver | None:
    if tracing is None:
        return None
    from pagewire_shard.tracing.step_spans import StepSpans

    return StepSpans(tracing.tracer, tracing.unsampled_tracer)


def _leave(steps: StepThread, tracing: "Tracing | None", status: int) -> None:
    """Ends the process at once if the step thread cannot be waited for: it loads, or a step hangs."""
    has_ended = steps.ready.done() and steps.join(JOIN_TIMEOUT_S)
    if tracing is not None:
        tracing.shutdown()
    if not has_ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
