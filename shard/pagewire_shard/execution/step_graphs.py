"""Steps as CUDA graphs, replayed without Python in between: forward pass, output projection, sampling.

A forward pass is captured for decode steps, by their number of sequences, and for any mixture of prompts and decodes,
by the number of tokens: how many sequences there are and how long they are is read on the device. A mixed pass leaves
the last hidden state of each row, from which a second graph makes logits; its last layer computes no others, so that
steps whose rows want log-probabilities of prompts are not for graphs. A decode step's pass makes logits itself. Then
sampling is the same for both. Between logits and sampling something can come: log-probabilities are copied before
sampling uses the logits up, and rare stages are sampled by separate launches.

In a pipeline, messages of other stages come before a graph and leave behind it: graphs read and write them in buffers
of their own. A stage before the last one captures forward passes alone, which count the computed tokens in the end.
"""

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from pagewire.v1 import shard_pb2
from pagewire_kernels.append_tokens import FIRST_TOKEN
from pagewire_kernels.paged_attention import SharedPrefixes
from pagewire_kernels.prepare_inputs import PreparedInputs, StepRows, prepare_inputs
from pagewire_kernels.sample import Stage, TokenMasks
from pagewire_kernels.sample.columns import ALL_STAGES, RARE_STAGES

from pagewire_shard.engine.runner import BatchMasks, RunBatch
from pagewire_shard.execution.device_state import DeviceState
from pagewire_shard.execution.graph_capture import Capturer, Work, garbage_collected_before
from pagewire_shard.execution.graph_sizes import GraphSizes
from pagewire_shard.execution.host_transfer import Downlink, Uplink
from pagewire_shard.execution.model_runner import (
    append_sampled,
    count_computed,
    pending_logprobs,
    pending_scores,
    scrap_slot,
)
from pagewire_shard.execution.prefix_sharing import PrefixSharing
from pagewire_shard.execution.step_report import PendingScores, StepOutput
from pagewire_shard.execution.uploaded_rows import UploadedRows
from pagewire_shard.layers.forward_batch import ForwardBatch, KVCache
from pagewire_shard.models.decoder import Decoder
from pagewire_shard.parallel.pipeline import Pipeline
from pagewire_shard.sampling.masks import UploadedMasks
from pagewire_shard.sampling.sampler import Sampler

CAPTURED_STAGES = ALL_STAGES & ~RARE_STAGES
"""Stages of a captured sampling. A batch that needs more is sampled by separate launches."""

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class RowGraphs:
    """What is captured for a number of rows."""

    num_rows: int
    report: torch.Tensor
    """[FIRST_TOKEN + 1, num_rows] int64, as append_tokens returns it."""
    token_ids: torch.Tensor
    """[num_rows] int64: what the graph sampled last, of void rows arbitrary."""
    decode: Work = lambda: None
    """The logits of one token of each row."""
    decode_shared: Work | None = None
    """The same where rows share prefixes, by the plan that PrefixSharing has on the device."""
    project: Work = lambda: None
    """The logits of the rows' last hidden states, which a mixed pass leaves."""
    sample: Work = lambda: None
    """Samples the logits by CAPTURED_STAGES, appends, and writes the report."""


class _Capture(NamedTuple):
    """Something to capture."""

    name: str
    work: Work
    is_warm: bool
    """All its kernels are those of a capture before it."""
    keep: Callable[[Work], None]
    """Takes the captured work."""


class StepGraphs:
    """The graphs of all sizes, on buffers they share."""

    def __init__(
        self,
        model: Decoder,
        state: DeviceState,
        sampler: Sampler,
        kv_caches: list[KVCache],
        block_size: int,
        sizes: GraphSizes,
        sharing: PrefixSharing | None = None,
        pipeline: Pipeline | None = None,
    ) -> None:
        """pipeline: The other stages; None: the model has all layers."""
        self._model = model
        self._state = state
        self._sampler = sampler
        self._kv_caches = kv_caches
        self._block_size = block_size
        self._sharing = sharing
        self._shared_sizes = sizes.shared if sharing else ()
        device, dtype, max_rows = state.device, model.dtype, sizes.rows[-1]
        self._rows = UploadedRows(max_rows, state.void_slot, device, scrap_slot(model, kv_caches))
        self._samples = model.spec.stage.is_last
        self._pipeline = pipeline
        most_tokens = max(max_rows, sizes.mixed[-1][0] if sizes.mixed else 0)
        # Not memory of the graphs: what one graph leaves for the next, or for a copy that is still on its way.
        self._incoming, self._outgoing = (
            None if spec is None else torch.zeros(most_tokens, spec.width, dtype=dtype, device=device)
            for spec in (model.spec.received, model.spec.passed_on)
        )
        """What other stages of the pipeline pass on to this one, and what this one passes on; None: there are none."""
        num_sampled = max_rows if self._samples else 0
        self._hidden = torch.zeros(num_sampled, model.spec.hidden_size, dtype=dtype, device=device)
        self._logits = torch.zeros(num_sampled, model.spec.vocab_size, dtype=dtype, device=device)
        self._report = torch.zeros((FIRST_TOKEN + 1) * max_rows, dtype=torch.int64, device=device)
        self._row_graphs = [self._uncaptured(num_rows) for num_rows in sizes.rows]
        self._mixed: dict[tuple[int, int], Work] = dict.fromkeys(sizes.mixed, lambda: None)
        """By tokens and rows, ascending."""
        self.capture_s: list[float] = []
        """Seconds that each capture took, in order, and before them those of the runs that load kernels."""

    def _uncaptured(self, num_rows: int) -> RowGraphs:
        return RowGraphs(num_rows, self._report_of(num_rows), self._rows.slots[:num_rows])

    def _report_of(self, num_rows: int) -> torch.Tensor:
        return self._report[: (FIRST_TOKEN + 1) * num_rows].view(FIRST_TOKEN + 1, num_rows)

    @torch.inference_mode()
    def capture(self, capturer: Capturer) -> None:
        """Captures all sizes, largest first, so that the smaller ones fit into the memory they took."""
        used_before = capturer.used_bytes()
        with garbage_collected_before():
            captures = self._captures()
            self._warm(captures, capturer)
            # What that took is given back, before the graphs take their own.
            capturer.used_bytes()
            self._capture_all(captures, capturer)
        used_mib = (capturer.used_bytes() - used_before) >> 20
        done = f"{len(captures)} graphs captured in {sum(self.capture_s):.1f} s, {used_mib} MiB"
        _log.info(done)
        _show(done, is_last=True)

    def _captures(self) -> list[_Capture]:
        captures: list[_Capture] = []
        seen: set[tuple[str, int]] = set()
        for (num_tokens, num_rows), _ in reversed(self._mixed.items()):
            sizes = {("tokens", num_tokens), ("rows", num_rows)}
            name, work = f"{num_tokens} tokens", self._mixed_work(num_tokens, num_rows)
            captures.append(_Capture(name, work, sizes <= seen, self._keep_mixed(num_tokens, num_rows)))
            seen |= sizes
        for graphs in reversed(self._row_graphs):
            for part, work in self._row_works(graphs).items():
                captures.append(_Capture(f"{graphs.num_rows} rows", work, False, _keep(graphs, part)))
        return captures

    def _warm(self, captures: list[_Capture], capturer: Capturer) -> None:
        began_s = time.perf_counter()
        for i, capture in enumerate(captures):
            if not capture.is_warm:
                _show(f"loading kernels: {i + 1}/{len(captures)}, {capture.name}")
                capturer.warm(capture.work)
        self.capture_s.append(time.perf_counter() - began_s)

    def _capture_all(self, captures: list[_Capture], capturer: Capturer) -> None:
        for i, capture in enumerate(captures):
            _show(f"capturing graphs: {i + 1}/{len(captures)}, {capture.name}")
            began_s = time.perf_counter()
            capture.keep(capturer.capture(capture.work))
            self.capture_s.append(time.perf_counter() - began_s)

    def _keep_mixed(self, num_tokens: int, num_rows: int) -> Callable[[Work], None]:
        return lambda captured: self._mixed.__setitem__((num_tokens, num_rows), captured)

    def holds(self, batch: RunBatch) -> bool:
        """Whether there are graphs for the batch."""
        if len(batch.slots) > self._row_graphs[-1].num_rows:
            return False
        return batch.is_decode or self._mixed_graph(batch) is not None

    def forward(self, batch: RunBatch, uplink: Uplink) -> None:
        """Runs the forward pass of a batch that `holds` says yes to, and leaves the logits of its rows."""
        num_rows = len(batch.slots)
        graphs = self._graphs_of(num_rows)
        self._rows.upload(batch, uplink)
        is_shared = self._sharing is not None and self._sharing.plan(batch, uplink)
        num_tokens = sum(batch.query_lens)
        if self._pipeline is not None and self._incoming is not None:
            self._pipeline.receive(self._incoming[:num_tokens])
        if batch.is_decode:
            (self._shared_graph(num_rows) or graphs.decode if is_shared else graphs.decode)()
        else:
            mixed = self._mixed_graph(batch)
            assert mixed is not None, "holds has been asked"
            mixed()
            graphs.project()
        if self._pipeline is not None and self._outgoing is not None:
            self._pipeline.send(self._outgoing[:num_tokens])

    def sample(
        self,
        batch: RunBatch,
        uplink: Uplink,
        downlink: Downlink,
        masks: BatchMasks | None = None,
    ) -> StepOutput:
        """Samples the batch whose forward pass came last."""
        num_rows = len(batch.slots)
        graphs = self._graphs_of(num_rows)
        raw = self._sampler.raw_logits(self._logits, batch.slots, uplink.upload, batch.sample_lens)
        uploaded = None if masks is None else UploadedMasks(masks, uplink.upload)
        scores = self._scores(batch, uplink, uploaded)
        row_masks = None if uploaded is None else uploaded.of(range(num_rows), graphs.num_rows - num_rows)
        failures = self._process(batch, uplink)
        downlink.before_next_report()
        if row_masks is not None or self._sampler.has_rare_stages(batch.slots):
            token_ids = self._sample(graphs, self._sampler.stages(batch.slots), row_masks)
        else:
            graphs.sample()
            token_ids = graphs.token_ids
        logprobs = pending_logprobs(raw, token_ids, range(num_rows))
        return StepOutput(graphs.report, logprobs, scores, None, failures)

    def _scores(self, batch: RunBatch, uplink: Uplink, masks: UploadedMasks | None) -> PendingScores | None:
        if not batch.scored:
            return None
        logits = self._logits.index_select(0, uplink.upload(batch.scored))
        return pending_scores(self._sampler, logits, batch, uplink, masks)

    def _process(self, batch: RunBatch, uplink: Uplink) -> list[shard_pb2.RowFailure]:
        """Has logits processors change the logits of the rows that sample."""
        if self._sampler.processing is None:
            return []
        sequences = [sequence if n else None for sequence, n in zip(batch.sequences, batch.sample_lens, strict=True)]
        return self._sampler.processing.process(self._logits[: len(sequences)], sequences, uplink.upload)

    def _graphs_of(self, num_rows: int) -> RowGraphs:
        return next(graphs for graphs in self._row_graphs if graphs.num_rows >= num_rows)

    def _shared_graph(self, num_rows: int) -> Work | None:
        return next((g.decode_shared for g in self._row_graphs if g.num_rows >= num_rows and g.decode_shared), None)

    def _mixed_graph(self, batch: RunBatch) -> Work | None:
        num_tokens, num_rows = sum(batch.query_lens), len(batch.slots)
        for (most_tokens, most_rows), graph in self._mixed.items():
            if num_tokens <= most_tokens and num_rows <= most_rows:
                return graph
        return None

    def _mixed_work(self, num_tokens: int, num_rows: int) -> Work:
        rows, hidden = self._rows, self._hidden[:num_rows]

        def forward() -> None:
            inputs, *others = self._inputs(num_tokens, num_rows, rows.query_lens[:num_rows])
            lens = (num_tokens, self._state.max_model_len)
            # Always with the plan: an empty one costs a microsecond in each layer, less than graphs without it.
            shared = self._sharing.shared if self._sharing else None
            states, max_lens = rows.states(num_rows), self._max_lens(num_rows)
            last = (inputs.query_start_loc[1:] - 1).clamp_(min=0).long()
            batch = ForwardBatch.of(inputs, *lens, 0, rows.row_counts, shared, others, states, max_lens, last)
            computed = self._forward(batch, num_rows)
            if self._samples:
                hidden.copy_(computed)

        return forward

    def _forward(self, batch: ForwardBatch, num_rows: int) -> torch.Tensor:
        """The forward pass. On a stage before the last one it leaves what the next is to get."""
        num_tokens = len(batch.positions)
        received = None if self._incoming is None else self._incoming[:num_tokens]
        computed = self._model.forward(batch, self._kv_caches, received)
        if self._outgoing is not None:
            self._outgoing[:num_tokens].copy_(computed)
            slots, query_lens = self._rows.slots[:num_rows], self._rows.query_lens[:num_rows]
            count_computed(self._state, slots, query_lens, self._report_of(num_rows))
        return computed

    def _row_works(self, graphs: RowGraphs) -> dict[str, Work]:
        """By field of RowGraphs."""
        num_rows = graphs.num_rows
        logits, hidden = self._logits[:num_rows], self._hidden[:num_rows]

        def decode(shared: SharedPrefixes | None = None) -> None:
            inputs, *others = self._inputs(num_rows, num_rows, None)
            batch = ForwardBatch.of(
                inputs,
                1,
                self._state.max_model_len,
                num_rows,
                shared=shared,
                others=others,
                max_lens=self._max_lens(num_rows),
                states=self._rows.states(num_rows),
            )
            computed = self._forward(batch, num_rows)
            if self._samples:
                self._model.compute_logits(computed, out=logits)

        def project() -> None:
            self._model.compute_logits(hidden, out=logits)

        def sample() -> None:
            graphs.token_ids = self._sample(graphs, CAPTURED_STAGES)

        works: dict[str, Work] = {"decode": decode}
        if self._samples:
            works |= {"project": project, "sample": sample}
        if self._sharing and num_rows in self._shared_sizes:
            works["decode_shared"] = partial(decode, self._sharing.shared)
        return works

    def _max_lens(self, num_rows: int) -> torch.Tensor | None:
        """See ForwardBatch."""
        return self._state.max_lens(self._rows.slots[:num_rows]) if self._model.spec.longest_short else None

    def _inputs(self, num_tokens: int, num_rows: int, query_lens: torch.Tensor | None) -> list[PreparedInputs]:
        """By each of the block tables."""
        sizes = {
            "block_size": self._block_size,
            "num_tokens": num_tokens,
            "max_blocks": self._state.block_tables.shape[1],
        }
        slots = self._rows.slots[:num_rows]
        states = (self._state.sequences, *self._state.others)
        return [prepare_inputs(StepRows(state, slots, query_lens, **sizes)) for state in states]

    def _sample(self, graphs: RowGraphs, stages: Stage, masks: TokenMasks | None = None) -> torch.Tensor:
        """Samples the rows' logits, which may be used up; returns the tokens and writes the report."""
        num_rows, rows = graphs.num_rows, self._rows
        slots = rows.slots[:num_rows]
        token_ids = self._sampler.choose(self._logits[:num_rows], slots, stages, masks)
        query_lens, sample_rows = rows.query_lens[:num_rows], rows.sample_rows[:num_rows]
        append_sampled(self._state, slots, query_lens, token_ids, sample_rows, out=graphs.report)
        return token_ids


def _keep(graphs: RowGraphs, part: str) -> Callable[[Work], None]:
    return lambda captured: setattr(graphs, part, captured)


def _show(line: str, *, is_last: bool = False) -> None:
    """On a terminal, in place of the line before."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{line}\x1b[K{chr(10) if is_last else ' '}")
        sys.stderr.flush()
