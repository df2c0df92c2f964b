"""Runs any batch, operation after operation: on a CPU every step, on a GPU those that no graph has been captured for.

Everything a step needs beyond slots and query lengths is in the device state, so a step never waits for the host to
learn what the step before it sampled. A row that stopped in an earlier step which the host has not seen yet is void:
its keys and values go nowhere and it yields no token. Nothing here waits for the device.
"""

from array import array
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

import torch
from pagewire.v1 import shard_pb2
from pagewire_kernels.append_tokens import AppendInputs, StopReasons, append_tokens
from pagewire_kernels.copy_blocks import copy_blocks
from pagewire_kernels.prepare_inputs import StepRows, prepare_inputs

from pagewire_shard.engine.runner import BatchMasks, PendingTokens, RunBatch, StepTokens
from pagewire_shard.engine.sequence import Sequence
from pagewire_shard.execution.device_state import DeviceState, SlotRow
from pagewire_shard.execution.host_transfer import CpuDownlink, CpuUplink, Downlink, Uplink
from pagewire_shard.execution.prefix_sharing import PrefixSharing
from pagewire_shard.execution.stage_tokens import FollowedTokens, ToldTokens
from pagewire_shard.execution.step_report import PendingLogprobs, PendingScores, StepOutput
from pagewire_shard.layers.forward_batch import ForwardBatch, KVCache
from pagewire_shard.models.decoder import Decoder
from pagewire_shard.parallel.pipeline import StageLinks
from pagewire_shard.sampling.logprobs import RawLogits
from pagewire_shard.sampling.masks import UploadedMasks
from pagewire_shard.sampling.prompt_scores import PromptScorer
from pagewire_shard.sampling.sampler import Sampler
from pagewire_shard.slot_tables import SlotTables

_REASONS = StopReasons(
    token=int(shard_pb2.STOP_REASON_TOKEN),
    length=int(shard_pb2.STOP_REASON_LENGTH),
    error=int(shard_pb2.STOP_REASON_ERROR),
)


class ForwardPass(NamedTuple):
    """What sampling needs of a forward pass, on the device."""

    slots: torch.Tensor
    """[num_rows] int64."""
    query_lens: torch.Tensor | None
    """[num_rows] int64; None: each row computes one token."""
    hidden: torch.Tensor
    """[num_tokens, hidden_size], padding included."""


class ModelRunner:
    """The device's side of the engine: state, caches and the model."""

    def __init__(
        self,
        model: Decoder,
        state: DeviceState,
        kv_caches: list[KVCache],
        block_size: int,
        uplink: Uplink | None = None,
        downlink: Downlink | None = None,
        sharing: PrefixSharing | None = None,
        places: list[KVCache] | None = None,
        links: StageLinks | None = None,
    ) -> None:
        """uplink, downlink: the copies to and from a device; None: the device is a CPU. sharing: None: each sequence's
        attention reads all of its keys. places: what the layers' caches are views of (layers/cache_layout.py); None:
        the caches themselves. links: to the other stages of the pipeline; None: the model has all layers."""
        self.model = model
        self.state = state
        self.sampler = Sampler(state.sequences, model.spec.vocab_size)
        self.kv_caches = kv_caches
        self.block_size = block_size
        self.uplink = uplink or CpuUplink()
        self.downlink = downlink or CpuDownlink()
        self.sharing = sharing
        self.links = links
        self.samples = model.spec.stage.is_last
        self._followed: FollowedTokens | None = None
        """On a stage before the last one: what that has sampled, or will."""
        if not self.samples:
            assert links is not None
            self._followed = FollowedTokens(state, self.uplink, links.mail, append_sampled)
        self.prompt_scorer = PromptScorer(self._logits_at, self.uplink.upload)
        self._tables = SlotTables((*state.tables, *self.sampler.tables))
        if places is None:
            places = list({id(cache[0]): cache for cache in block_caches(model, kv_caches)}.values())
        self._places = places
        """Layers of different block tables share them."""
        self._has_longrope = model.spec.longest_short > 0
        self.scrap_slot = scrap_slot(model, kv_caches)
        """The state slot of rows whose state nobody needs; None: the model has no recurrent state."""
        self._passed: ForwardPass | None = None
        """The forward pass of the step that is yet to be sampled."""
        self._admitted: dict[int, SlotRow] = {}
        """Rows that the next step writes, by slot."""

    def admit(self, sequence: Sequence) -> None:
        """Fills the sequence's slot before the next step."""
        self._admitted[sequence.slot] = self.state.row(sequence)
        if self.samples:
            self.sampler.admit(sequence)
            self.prompt_scorer.admit(sequence)

    def watch_progress(self, on_progress: Callable[[], None]) -> None:
        """See Runner."""
        self.model.on_layer = on_progress

    def end_epoch(self) -> None:
        """Forgets sequences whose first step never came, or broke, and what a step that broke was about to write."""
        self._admitted.clear()
        self._passed = None
        if self._followed is not None:
            self._followed.end_epoch()
        self.sampler.end_epoch()
        self._tables.discard()

    def launch(self, batch: RunBatch) -> PendingTokens:
        """Runs one step; see the module's docstring."""
        self.forward(batch)
        return self.sample(batch)

    @torch.inference_mode()
    def forward(self, batch: RunBatch) -> None:
        """See Runner."""
        self.downlink.begin_step()
        self.uplink.begin_step()
        if self._followed is not None:
            self._followed.catch_up(batch)
        self._apply_changes(batch)
        if batch.sequences:
            self._forward(batch)
            self.downlink.forwarded()

    @torch.inference_mode()
    def sample(self, batch: RunBatch, masks: BatchMasks | None = None) -> PendingTokens:
        """See Runner."""
        output = self._sample(batch, masks) if batch.sequences and self.samples else None
        self.uplink.end_step()
        if output is None:
            return self._followed.begin(batch) if self._followed is not None and batch.sequences else StepTokens()
        pending = self.downlink.send(output, len(batch.slots))
        if self.links is not None and self.links.tell is not None:
            return ToldTokens(pending, batch, self.links.tell)
        return pending

    def _apply_changes(self, batch: RunBatch) -> None:
        """Brings device state and caches to where the host has them."""
        self.state.fill(self._admitted, batch.table_updates, self._tables, batch.other_table_updates)
        if self.sharing is not None:
            self.sharing.apply(self._admitted, batch.table_updates)
        self._admitted.clear()
        self.sampler.fill(self._tables)
        self._tables.flush(self.uplink.upload)
        if batch.copies and self._places:
            copies = self.uplink.upload([block for blocks in zip(*batch.copies, strict=True) for block in blocks])
            copy_blocks(self._places, *copies.view(2, -1).unbind(0))

    def _forward(self, batch: RunBatch) -> None:
        assert max(batch.sample_lens) <= 1, "nobody makes drafts yet"
        lens = batch.query_lens
        slots = self.uplink.upload(batch.slots)
        query_lens = self.uplink.upload(lens) if max(lens) > 1 else None
        prepared = self._prepare(batch, slots, query_lens)
        num_tokens = sum(lens)
        received = self._received(num_tokens, len(prepared.positions))
        hidden = self.model.forward(prepared, self.kv_caches, received)
        if self.samples:
            self._passed = ForwardPass(slots, query_lens, hidden)
        else:
            assert self.links is not None
            self.links.pipeline.send(hidden[:num_tokens])
            count_computed(self.state, slots, query_lens)

    def _received(self, num_tokens: int, num_rows: int) -> torch.Tensor | None:
        """[num_rows, width]: what the stage before passes on, of num_tokens tokens; None: this is the first."""
        spec = self.model.spec.received
        if spec is None:
            return None
        assert self.links is not None
        message = torch.zeros(num_rows, spec.width, dtype=self.model.dtype, device=self.state.device)
        self.links.pipeline.receive(message[:num_tokens])
        return message

    def _sample(self, batch: RunBatch, masks: BatchMasks | None) -> StepOutput:
        assert self._passed is not None, "no forward pass has been launched"
        (slots, query_lens, hidden), self._passed = self._passed, None
        lens = batch.query_lens
        prompt_scores = self.prompt_scorer.score(batch, hidden)
        rows = [row for row, samples in enumerate(batch.sample_lens) if samples]
        sampled, sample_rows, logprobs, scores = slots[:0], None, None, None
        failures: list[shard_pb2.RowFailure] = []
        uploaded = None if masks is None else UploadedMasks(masks, self.uplink.upload)
        # Then every token of the step is the last one of a row that samples.
        is_decode = len(rows) == sum(lens)
        if is_decode:
            logits = self.model.compute_logits(hidden)
        elif rows or batch.scored:
            logits = self._last_logits(hidden, [*rows, *batch.scored], lens)
            scores = pending_scores(self.sampler, logits[len(rows) :], batch, self.uplink, uploaded)
        if rows:
            slots_of_rows, upload = [batch.slots[row] for row in rows], self.uplink.upload
            row_masks, logits = None if uploaded is None else uploaded.of(rows), logits[: len(rows)]
            raw = self.sampler.raw_logits(logits, slots_of_rows, upload)
            if self.sampler.processing is not None:
                failures = self.sampler.processing.process(logits, [batch.sequences[row] for row in rows], upload)
            for failure in failures:
                failure.run_index = rows[failure.run_index]
            stages = self.sampler.stages(slots_of_rows)
            sampled = self.sampler.choose(logits, slots if is_decode else upload(slots_of_rows), stages, row_masks)
            logprobs = pending_logprobs(raw, sampled, rows)
        if len(rows) < len(lens):
            entries = accumulate(batch.sample_lens, initial=0)
            sample_rows = self.uplink.upload(
                [entry if samples else -1 for entry, samples in zip(entries, batch.sample_lens, strict=False)]
            )
        report = append_sampled(self.state, slots, query_lens, sampled, sample_rows)
        return StepOutput(report, logprobs, scores, prompt_scores, failures)

    def _prepare(self, batch: RunBatch, slots: torch.Tensor, query_lens: torch.Tensor | None) -> ForwardBatch:
        num_tokens = sum(batch.query_lens)
        rows = StepRows(
            self.state.sequences,
            slots,
            query_lens,
            block_size=self.block_size,
            num_tokens=num_tokens + self._num_padding(num_tokens),
            max_blocks=-(-batch.max_seq_len // self.block_size),
        )
        inputs, lens = prepare_inputs(rows), (max(batch.query_lens), batch.max_seq_len)
        others = [prepare_inputs(replace(rows, state=state)) for state in self.state.others]
        is_shared = self.sharing is not None and self.sharing.plan(batch, self.uplink)
        shared = self.sharing.shared if self.sharing is not None and is_shared else None
        max_lens = self.state.max_lens(slots) if self._has_longrope else None
        states = None if self.scrap_slot is None else self._upload_states(batch, self.scrap_slot)
        return ForwardBatch.of(
            inputs, *lens, batch.num_decodes, shared=shared, others=others, states=states, max_lens=max_lens
        )

    def _upload_states(self, batch: RunBatch, scrap_slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The state slots that rows read, and those that they write."""
        slots = array("i", batch.read_slots or [-1] * len(batch.slots))
        slots += array("i", batch.write_slots or [scrap_slot] * len(batch.slots))
        reads, writes = self.uplink.upload(slots, torch.int32).view(2, -1).unbind(0)
        return reads, writes

    def _last_logits(self, hidden: torch.Tensor, rows: list[int], query_lens: list[int]) -> torch.Tensor:
        """[num_samples, vocab_size]: what follows each row's last token."""
        ends = list(accumulate(query_lens))
        return self._logits_at(hidden, [ends[row] - 1 for row in rows])

    def _logits_at(self, hidden: torch.Tensor, places: list[int]) -> torch.Tensor:
        """[len(places), vocab_size]: the logits of some hidden states."""
        padded = places + [0] * self._num_padding(len(places))
        return self.model.compute_logits(hidden.index_select(0, self.uplink.upload(padded)))[: len(places)]

    def _num_padding(self, num_rows: int) -> int:
        """Rows to add on a CPU, whose matrix products keep code and memory for every number of rows they have seen."""
        if self.state.device.type != "cpu":
            return 0
        step = 1 if num_rows <= 8 else 8 if num_rows <= 64 else 32
        return -num_rows % step


def block_caches(model: Decoder, kv_caches: list[KVCache]) -> list[KVCache]:
    """The caches that are made of blocks, without the states of layers that have both."""
    num_states = [0 if (state := layer.mixer.state) is None else len(state.tensors) for layer in model.spec.layers]
    caches = (cache[: len(cache) - num] for cache, num in zip(kv_caches, num_states, strict=True))
    return [cache for cache in caches if cache]


def scrap_slot(model: Decoder, kv_caches: list[KVCache]) -> int | None:
    """The last state slot, which is no sequence's; None: the model has no recurrent state."""
    layers = zip(model.spec.layers, kv_caches, strict=True)
    return next((len(cache[-1]) - 1 for layer, cache in layers if layer.mixer.state is not None), None)


def append_sampled(
    state: DeviceState,
    slots: torch.Tensor,
    query_lens: torch.Tensor | None,
    sampled: torch.Tensor,
    sample_rows: torch.Tensor | None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """append_tokens on the device state, with the stop reasons of the wire; sampled: [num_samples] int64."""
    return append_tokens(AppendInputs(state.sequences, slots, query_lens, sampled[:, None], sample_rows, _REASONS), out)


def count_computed(
    state: DeviceState, slots: torch.Tensor, query_lens: torch.Tensor | None, out: torch.Tensor | None = None
) -> None:
    """Counts the tokens that a step has computed, whatever it will have sampled."""
    append_sampled(state, slots, query_lens, slots[:0], torch.full_like(slots, -1), out)


def pending_logprobs(raw: RawLogits | None, sampled: torch.Tensor, batch_rows: Items[int]) -> PendingLogprobs | None:
    """The log-probabilities that rows of the batch asked for.

    Args:
        sampled: [num_samples] int64: what was sampled, row by row of the logits.
        batch_rows: For each row of the logits its row in the batch.
    """
    if raw is None:
        return None
    return PendingLogprobs([batch_rows[row] for row in raw.rows], raw.nums, raw.gather(sampled))


def pending_scores(
    sampler: Sampler, logits: torch.Tensor, batch: RunBatch, uplink: Uplink, masks: UploadedMasks | None
) -> PendingScores | None:
    """The scores of the batch's rows that are scored; None: there are none.

    Args:
        logits: Their logits, row by row.
    """
    if not batch.scored:
        return None
    nums = [batch.sequences[row].num_scores for row in batch.scored]
    slots = [batch.slots[row] for row in batch.scored]
    row_masks = None if masks is None else masks.of(batch.scored)
    return PendingScores(batch.scored, nums, sampler.score(logits, slots, max(nums), uplink.upload, row_masks))
