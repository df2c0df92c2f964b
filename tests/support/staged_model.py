"""A real model in two stages, in one process: scheduler, an engine for each stage, and messages between them."""

from collections import deque
from dataclasses import replace

import torch
from model_world import CPU, EngineWorld, MakeRunner
from pagewire.v1 import shard_pb2
from pagewire_common.cache_groups import STATES_PER_SEQUENCE, CacheGroup, num_states_of
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_shard.engine.block_pool import BlockPool
from pagewire_shard.engine.engine import Engine
from pagewire_shard.engine.launched_step import LaunchedStep
from pagewire_shard.execution.device_state import DeviceState
from pagewire_shard.grammar.grammars import Grammars
from pagewire_shard.layers.cache_layout import CacheLayout, plan_layout
from pagewire_shard.models.decoder import Decoder
from pagewire_shard.parallel.pipeline import Pipeline, StageLinks, TokenMail
from pagewire_shard.parallel.stage import Stage
from scheduling_world import shard_info


class LocalPipeline(Pipeline):
    """A stage's end of messages within the process."""

    def __init__(self, stage: Stage, messages: deque[torch.Tensor]) -> None:
        self.stage = stage
        self._messages = messages

    def send(self, x: torch.Tensor) -> None:
        self._messages.append(x.clone())

    def receive(self, out: torch.Tensor) -> None:
        out.copy_(self._messages.popleft())


class TwoEngines:
    """The engines of both stages as one. The last one reports; both must agree after each step."""

    def __init__(self, first: Engine, last: Engine) -> None:
        self._first, self._last = first, last
        self.pool, self.states = last.pool, last.states
        self._pending: deque[LaunchedStep] = deque()
        """Of the first stage."""

    def begin_epoch(self, max_inflight: int) -> list[int]:
        self._first.begin_epoch(max_inflight)
        return self._last.begin_epoch(max_inflight)

    def launch(self, plan: shard_pb2.StepPlan) -> LaunchedStep:
        self._pending.append(self._first.launch(plan))
        return self._last.launch(plan)

    def collect(self, launched: LaunchedStep) -> shard_pb2.StepResult:
        result = self._last.collect(launched)
        other = self._first.collect(self._pending.popleft())
        assert (other.step, other.state_digest) == (result.step, result.state_digest), "the stages have drifted apart"
        return result

    def check_consistent(self) -> None:
        for engine in (self._first, self._last):
            engine.check_consistent()

    def cached_hashes(self) -> list[int]:
        return self._last.cached_hashes()


class StagedModelWorld(EngineWorld):
    """Caches hold NaN where nothing was written."""

    def __init__(
        self,
        models: list[Decoder],
        limits: GroupLimits,
        make_runner: MakeRunner,
        window: int = 3,
        grammars: Grammars | None = None,
    ) -> None:
        """models: both stages. limits.groups: the model's blocks, without its states."""
        mail, messages = TokenMail(), deque[torch.Tensor]()
        limits = replace(limits, num_stages=2, longest_short=models[0].spec.longest_short)
        layouts = [layout_of(model, limits) for model in models]
        if any(layout.has_states for layout in layouts):
            states = CacheGroup(0, 0, STATES_PER_SEQUENCE * limits.max_num_seqs)
            limits = replace(limits, groups=(*limits.groups, states))
        engines = []
        for index, (model, layout) in enumerate(zip(models, layouts, strict=True)):
            tell = None if index == 0 else mail.put
            links = StageLinks(LocalPipeline(Stage(index, 2), messages), mail, tell)
            engines.append(engine_of(model, layout, limits, make_runner, links, grammars if index else None))
        super().__init__(TwoEngines(*engines), limits, window, grammars)  # type: ignore[arg-type]
        self.scheduler.reset(limits.num_blocks, window)


def layout_of(model: Decoder, limits: GroupLimits) -> CacheLayout:
    spec = model.spec
    assert spec.all_stages is not None
    stage = range(spec.first_layer, spec.first_layer + len(spec.layers))
    return plan_layout(spec.all_stages.layers, limits.max_model_len, stage)


def engine_of(
    model: Decoder,
    layout: CacheLayout,
    limits: GroupLimits,
    make_runner: MakeRunner,
    links: StageLinks,
    grammars: Grammars | None,
) -> Engine:
    model.layer_tables = layout.layer_tables
    places = layout.allocate_places(limits.num_blocks, limits.block_size, torch.float32, CPU)
    caches = layout.layers_in(places, limits.block_size, torch.float32, CPU, num_states_of(limits.groups))
    for cache in caches:
        for tensor in cache:
            tensor.fill_(torch.nan)
    state = DeviceState(limits.max_num_seqs, limits.max_model_len, limits.block_size, CPU, layout.table_parts)
    runner = make_runner(model, state, caches, limits.block_size, places=places, links=links)
    info = shard_info(limits, model.spec.vocab_size)
    return Engine(info, runner, BlockPool(limits.num_blocks, limits.block_size), grammars)
