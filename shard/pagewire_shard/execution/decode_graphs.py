"""Decode steps as CUDA graphs: one token for each of up to some hundreds of rows, replayed without Python in between.

For every batch size of a ladder the step is captured as two graphs, forward pass and sampling, so that something can
come between them (log-probabilities are copied before sampling uses the logits up). A batch takes the smallest size
that holds it; what is left over points at the void slot.

Source: https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import gc
import logging
import sys
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from pagewire_kernels.append_tokens import FIRST_TOKEN
from pagewire_kernels.prepare_inputs import StepRows, prepare_inputs
from pagewire_kernels.sample import Stage
from pagewire_kernels.sample.columns import ALL_STAGES, RARE_STAGES

from pagewire_shard.engine.runner import RunBatch
from pagewire_shard.execution.device_state import DeviceState
from pagewire_shard.execution.host_transfer import Downlink, Uplink
from pagewire_shard.execution.model_runner import StepOutput, append_sampled, pending_logprobs
from pagewire_shard.layers.forward_batch import ForwardBatch, KVCache
from pagewire_shard.models.decoder import Decoder
from pagewire_shard.sampling.sampler import Sampler

MAX_GRAPH_SIZE = 512
"""Largest captured batch size. Above it, a step's work hides the time that Python takes to launch it."""
_LADDER = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)
"""Captured batch sizes. Matrix products pad rows to tiles of 16 to 64, so that sizes an eighth apart cost little."""
CAPTURED_STAGES = ALL_STAGES & ~RARE_STAGES
"""Stages of a captured sampling. A batch that needs more is sampled by separate launches."""

_log = logging.getLogger(__name__)


def graph_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """The batch sizes to capture, smallest first: the last holds all sequences, unless they are more than 512."""
    largest = min(max_num_seqs, MAX_GRAPH_SIZE)
    return (*(size for size in _LADDER if size < largest), largest)


class Capturer(Protocol):
    """Makes work repeatable."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Runs the work, then returns a function that runs it again on the same tensors."""


class CpuCapturer:
    """Repeats work by doing it again."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """See Capturer."""
        work()
        return work


class CudaCapturer:
    """Captures work in CUDA graphs, whose scratch memory is one pool: no two of them run at once."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """See Capturer. The first run compiles and loads kernels, which a capture must not."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        return graph.replay


@contextmanager
def _garbage_collected_before() -> Iterator[None]:
    """Collects garbage once and not again within: a graph of an earlier engine that is destroyed while another one is
    captured invalidates the capture."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass(slots=True, eq=False)
class DecodeGraph:
    """The decode step of one batch size."""

    size: int
    forward: Callable[[], None]
    """Computes `logits` from the slots."""
    sample: Callable[[], None]
    """Computes `outputs` from `logits` by CAPTURED_STAGES; overwrites the logits."""
    sample_uncaptured: Callable[[Stage], torch.Tensor]
    """Samples by any stages, without the graph; returns the tokens and writes the report."""
    logits: torch.Tensor
    """[size, vocab_size], the model's dtype."""
    outputs: "SampleOutputs"


@dataclass(slots=True, eq=False)
class SampleOutputs:
    """Results of the last sampling. A graph writes to the same memory every time."""

    token_ids: torch.Tensor
    """[size] int64: what was sampled, of void rows arbitrary."""
    report: torch.Tensor
    """[FIRST_TOKEN + 1, size] int64, as append_tokens returns it."""


class DecodeGraphs:
    """The decode steps of all sizes, on buffers they share."""

    def __init__(
        self,
        model: Decoder,
        state: DeviceState,
        sampler: Sampler,
        kv_caches: list[KVCache],
        block_size: int,
        max_size: int,
    ) -> None:
        self._model = model
        self._state = state
        self._sampler = sampler
        self._kv_caches = kv_caches
        self._block_size = block_size
        self._slots = torch.full((max_size,), state.void_slot, dtype=torch.int64, device=state.device)
        self._logits = torch.zeros(max_size, model.spec.vocab_size, dtype=kv_caches[0][0].dtype, device=state.device)
        self._uploaded: list[int] = []
        """The slots of the last upload."""
        self._graphs: list[DecodeGraph] = []
        self.capture_s: list[float] = []
        """Seconds that each capture took, largest size first; the first one compiles and loads kernels."""

    @torch.inference_mode()
    def capture(self, sizes: Items[int], capturer: Capturer) -> None:
        """Captures the sizes, largest first, so that the smaller ones fit into the memory it took."""
        with _garbage_collected_before():
            self._capture_all(sizes, capturer)
        done = f"{len(sizes)} decode graphs captured in {sum(self.capture_s):.1f} s"
        _log.info(done)
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{done}\x1b[K\n")

    def _capture_all(self, sizes: Items[int], capturer: Capturer) -> None:
        progress = sys.stderr
        for i, size in enumerate(sorted(sizes, reverse=True)):
            if progress.isatty():
                progress.write(f"\rcapturing decode graphs: {i + 1}/{len(sizes)}, batch size {size} \x1b[K")
                progress.flush()
            began_s = time.perf_counter()
            self._graphs.append(self._capture(size, capturer))
            self.capture_s.append(time.perf_counter() - began_s)
        self._graphs.reverse()

    def holds(self, batch: RunBatch) -> bool:
        """Whether there is a graph for the batch."""
        return bool(self._graphs) and batch.is_decode and len(batch.slots) <= self._graphs[-1].size

    def run(self, batch: RunBatch, uplink: Uplink, downlink: Downlink) -> StepOutput:
        """Runs a batch that `holds` says yes to."""
        num_rows = len(batch.slots)
        graph = next(graph for graph in self._graphs if graph.size >= num_rows)
        self._fill_slots(batch.slots, graph.size, uplink)
        graph.forward()
        downlink.forwarded()
        raw = self._sampler.raw_logits(graph.logits, batch.slots, uplink.upload)
        stages = self._sampler.stages(batch.slots)
        downlink.before_next_report()
        if stages & ~CAPTURED_STAGES:
            token_ids = graph.sample_uncaptured(stages)
        else:
            graph.sample()
            token_ids = graph.outputs.token_ids
        return StepOutput(graph.outputs.report, pending_logprobs(raw, token_ids, range(num_rows)))

    def _fill_slots(self, slots: list[int], size: int, uplink: Uplink) -> None:
        padded = slots + [self._state.void_slot] * (size - len(slots))
        # While nothing joins or leaves, the slots are those of the step before.
        if padded != self._uploaded:
            uplink.upload(padded, out=self._slots[:size])
            self._uploaded = padded

    def _capture(self, size: int, capturer: Capturer) -> DecodeGraph:
        slots, logits = self._slots[:size], self._logits[:size]
        # Not memory of the graphs: the next forward pass may use that while a copy of the report is still on its way.
        outputs = SampleOutputs(slots, torch.zeros(FIRST_TOKEN + 1, size, dtype=torch.int64, device=slots.device))

        def forward() -> None:
            hidden = self._model.forward(self._inputs(slots), self._kv_caches)
            self._model.compute_logits(hidden, out=logits)

        def choose(stages: Stage) -> torch.Tensor:
            token_ids = self._sampler.choose(logits, slots, stages)
            append_sampled(self._state, slots, None, token_ids, None, out=outputs.report)
            return token_ids

        def choose_captured() -> None:
            outputs.token_ids = choose(CAPTURED_STAGES)

        slots.fill_(self._state.void_slot)
        repeat_forward, repeat_choose = capturer.capture(forward), capturer.capture(choose_captured)
        return DecodeGraph(size, repeat_forward, repeat_choose, choose, logits, outputs)

    def _inputs(self, slots: torch.Tensor) -> ForwardBatch:
        size = slots.shape[0]
        rows = StepRows(
            self._state.sequences,
            slots,
            None,
            block_size=self._block_size,
            num_tokens=size,
            max_blocks=self._state.block_tables.shape[1],
        )
        return ForwardBatch.of(prepare_inputs(rows), 1, self._state.max_model_len, size)
