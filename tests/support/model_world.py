"""The router's scheduler, the shard's engine and a real model, in one process: no network, no threads."""

import queue
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import replace

import torch
from pagewire.v1 import shard_pb2
from pagewire_common.cache_groups import PLAIN, STATES_PER_SEQUENCE, CacheGroup, num_states_of
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_router.scheduling.scheduler import Scheduler
from pagewire_router.scheduling.sequence import Sequence, SequenceGroup
from pagewire_shard.engine.block_pool import BlockPool
from pagewire_shard.engine.engine import Engine
from pagewire_shard.engine.launched_step import LaunchedStep
from pagewire_shard.engine.runner import Runner
from pagewire_shard.execution.device_state import DeviceState
from pagewire_shard.execution.model_runner import ModelRunner
from pagewire_shard.grammar.grammars import Grammars, Prepared
from pagewire_shard.layers.cache_layout import plan_layout
from pagewire_shard.logits_processors import LogitsProcessor, ModelConfig, ProcessorConfig, SchedulerConfig
from pagewire_shard.models.decoder import Decoder
from pagewire_shard.sampling.processing import LogitsProcessing
from scheduling_world import make_request, shard_info

CPU = torch.device("cpu")

MakeRunner = Callable[..., Runner]
"""Of a decoder, the device state, the layers' caches, the size of a block, and perhaps what the caches are views of."""
"""Makes a runner on the state's device; the last argument is the block size."""


class EngineWorld:
    """Drives scheduler and engine as the group loop does, with `window` plans in flight."""

    def __init__(self, engine: Engine, limits: GroupLimits, window: int = 2, grammars: Grammars | None = None) -> None:
        """grammars: the engine's."""
        self.engine = engine
        self._grammars = grammars
        self.engine.begin_epoch(window)
        self.scheduler = Scheduler(limits)
        self.logprobs: dict[Sequence, list[shard_pb2.SequenceLogprobs]] = {}
        """Log-probabilities of sequences that asked for them, one for each token."""
        self.prompt_scores: dict[SequenceGroup, list[shard_pb2.PromptScores]] = {}
        """Log-probabilities of the prompts of requests that asked for them, in the order in which they came."""
        self.failures: dict[SequenceGroup, int] = {}
        """Why requests had no next token, a StopReason."""
        self.row_failures: dict[SequenceGroup, shard_pb2.RowFailure] = {}
        """What logits processors said of them."""
        self._window = window
        self._pending: deque[LaunchedStep] = deque()
        self._now = 0.0

    @property
    def failed(self) -> list[SequenceGroup]:
        """Requests that had no next token."""
        return list(self.failures)

    def submit(self, prompt: list[int], *, eos_token_ids: tuple[int, ...] = (), **options: object) -> SequenceGroup:
        """Queues a request; options are SamplingParams' and Request's."""
        request = make_request(prompt, eos=False, **options)
        return self.scheduler.add(replace(request, eos_token_ids=eos_token_ids, arrival_s=self._now))

    def step(self) -> bool:
        """Launches plans while the window is open, then takes in one result. False: nothing is left to do."""
        self._now += 1.0
        self._prepare_grammars()
        while self.scheduler.num_inflight < self._window:
            plan = self.scheduler.schedule(self._now)
            if plan is None:
                break
            self._pending.append(self.engine.launch(shard_pb2.StepPlan.FromString(plan.SerializeToString())))
            self.engine.check_consistent()
        if not self._pending:
            return False
        for progress in self.scheduler.update(self.engine.collect(self._pending.popleft())):
            if progress.prompt_scores is not None:
                self.prompt_scores.setdefault(progress.sequence.group, []).append(progress.prompt_scores)
            if progress.logprobs:
                self.logprobs.setdefault(progress.sequence, []).extend(progress.logprobs)
            if progress.failure:
                self.failures[progress.sequence.group] = progress.failure
                if progress.row_failure is not None:
                    self.row_failures[progress.sequence.group] = progress.row_failure
                self.scheduler.end(progress.sequence.group)
        return True

    def _prepare_grammars(self) -> None:
        """Answers what the scheduler asks for, when it is ready."""
        for message in self.scheduler.take_messages():
            if message.HasField("prepare"):
                assert self._grammars is not None
                done: queue.Queue[Prepared] = queue.Queue()
                self._grammars.prepare(message.prepare.name, message.prepare.grammar, done.put)
                answer = done.get(timeout=180)
                code, _ = answer.code.value
                self.scheduler.on_prepared(shard_pb2.Prepared(name=answer.name, code=code, message=answer.message))

    def new_epoch(self) -> None:
        """The plan stream breaks and is opened again: plans in flight are lost, cached blocks are not."""
        self._pending.clear()
        [free] = self.engine.begin_epoch(self._window)
        self.scheduler.reset(free, self._window)
        self.scheduler.prefixes.update(self.engine.cached_hashes(), ())

    def run(self, max_steps: int = 20_000) -> None:
        """Runs until every request has ended; then every block must be free or cached."""
        for _ in range(max_steps):
            if not self.step():
                break
        assert not self.scheduler.has_work(), "the scheduler is stuck"
        self.engine.pool.check_whole()
        self.engine.states.check_whole()
        assert self.scheduler.free_blocks == self.scheduler.limits.num_blocks


class ModelWorld(EngineWorld):
    """An engine of a model.

    The caches hold NaN where nothing was written, so that a read of the wrong place shows in every logit.
    """

    def __init__(
        self,
        model: Decoder,
        limits: GroupLimits,
        window: int = 2,
        *,
        make_runner: MakeRunner = ModelRunner,
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
        grammars: Grammars | None = None,
        processors: Items[type[LogitsProcessor]] = (),
    ) -> None:
        """Without states in limits.groups a model that has some gets as many as its sequences need."""
        blocks = tuple(group for group in limits.groups if not group.num_states)
        layout = plan_layout(model.spec.layers, limits.max_model_len if blocks != PLAIN else 0)
        assert layout.groups == blocks, "limits.groups are PLAIN or the model's"
        model.layer_tables = layout.layer_tables
        if layout.has_states and blocks == limits.groups:
            states = CacheGroup(0, 0, STATES_PER_SEQUENCE * limits.max_num_seqs)
            limits = replace(limits, groups=(*blocks, states))
        limits = replace(limits, longest_short=model.spec.longest_short)
        places = layout.allocate_places(limits.num_blocks, limits.block_size, dtype, device)
        caches = layout.layers_in(places, limits.block_size, dtype, device, num_states_of(limits.groups))
        for cache in caches:
            for tensor in cache:
                tensor.fill_(torch.nan)
        parts = layout.table_parts
        state = DeviceState(limits.max_num_seqs, limits.max_model_len, limits.block_size, device, parts)
        info = shard_info(limits, model.spec.vocab_size)
        pool = BlockPool(limits.num_blocks, limits.block_size)
        shared = {} if max(parts) == 1 else {"places": places}
        self.runner = make_runner(model, state, caches, limits.block_size, **shared)
        if processors:
            info.logits_processors.extend(each.__name__ for each in processors)
            config = ProcessorConfig(
                ModelConfig("model", limits.max_model_len, model.spec.vocab_size), SchedulerConfig(limits.max_num_seqs)
            )
            self.runner.sampler.processing = LogitsProcessing(processors, config, device)  # type: ignore[attr-defined]
        engine = Engine(info, self.runner, pool, grammars)
        super().__init__(engine, limits, window, grammars)
