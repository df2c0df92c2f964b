"""The stage of logits processors: code of the operator that changes logits before all other stages.

What processors are told of a sequence is its parameters and its tokens, so it is sampled when all tokens before are on
the host (engine.py). One that fails is tried on each row alone, to find whose sequence it fails for; that one ends, and
the processors are built anew for the others. If it fails for none, it cannot take them together: from then on each
sequence has processors of its own.
"""

import logging
from collections.abc import Sequence as Items

import grpc
import torch
from pagewire.v1 import shard_pb2
from pagewire_kernels.sample.columns import GREEDY_BELOW

from pagewire_shard.engine.sequence import Sequence
from pagewire_shard.errors import BadOption
from pagewire_shard.logits_processors import AddedRequest, BatchUpdate, LogitsProcessor, ProcessorConfig, RequestParams
from pagewire_shard.logits_processors.batch_order import BatchOrder
from pagewire_shard.slot_tables import Upload

_log = logging.getLogger(__name__)
_INVALID: int = grpc.StatusCode.INVALID_ARGUMENT.value[0]
_RAISED = Exception, SystemExit
"""Whatever code of others can raise."""
_INTERNAL: int = grpc.StatusCode.INTERNAL.value[0]


class LogitsProcessing:
    """Runs processors on the rows of batches, in the order in which they were named."""

    def __init__(self, classes: Items[type[LogitsProcessor]], config: ProcessorConfig, device: torch.device) -> None:
        """Builds the processors. Raises BadOption if one cannot be."""
        self._classes = classes
        self._config = config
        self._device = device
        self._order = BatchOrder[Sequence]()
        self._own: dict[Sequence, list[LogitsProcessor]] = {}
        """Processors that know one sequence of the last batch each, once they cannot take batches."""
        self._takes_batches = True
        self._accepted: set[Sequence] = set()
        """Sequences of the last batch, whose parameters have been checked."""
        try:
            self._processors = self._build()
        except _RAISED as error:
            _log.debug("a logits processor cannot be built", exc_info=True)
            raise BadOption(f"--logits-processors: {type(error).__name__}: {error}") from error

    def process(
        self, logits: torch.Tensor, sequences: Items[Sequence | None], upload: Upload
    ) -> list[shard_pb2.RowFailure]:
        """Changes the logits of some rows in place. Those of a row that fails become NaN, so that it yields no token.

        Args:
            logits: [num_rows, vocab_size].
            sequences: Each row's sequence; None: nothing is sampled from the row.

        Returns:
            Why rows have failed; run_index is the row of the logits.
        """
        # A sequence without output_ids has stopped in a step that was launched before this one.
        live = [(row, each) for row, each in enumerate(sequences) if each is not None and each.output_ids is not None]
        failures = self._refused(live)
        if failures:
            refused = [failure.run_index for failure in failures]
            logits.index_fill_(0, upload(refused), float("nan"))
            live = [(row, sequence) for row, sequence in live if row not in refused]
        if not live:
            return failures
        rows, live_sequences = [row for row, _ in live], [sequence for _, sequence in live]
        index = None if len(rows) == len(sequences) else upload(rows)
        given = logits if index is None else logits.index_select(0, index)
        changed, failed = self._run_all(given, live_sequences)
        failures += [shard_pb2.RowFailure(run_index=rows[i], code=_INTERNAL, message=why) for i, why in failed]
        if index is None:
            logits.copy_(changed)
        else:
            logits.index_copy_(0, index, changed.to(logits.dtype))
        return failures

    def _build(self) -> list[LogitsProcessor]:
        is_pinned = self._device.type == "cuda"
        return [each(self._config, self._device, is_pinned) for each in self._classes]

    def _refused(self, live: Items[tuple[int, Sequence]]) -> list[shard_pb2.RowFailure]:
        """Checks the parameters of sequences that are new."""
        failures: list[shard_pb2.RowFailure] = []
        accepted: set[Sequence] = set()
        for row, sequence in live:
            if sequence in self._accepted or (why := self._refusal(sequence)) is None:
                accepted.add(sequence)
            else:
                failures.append(shard_pb2.RowFailure(run_index=row, code=_INVALID, message=why))
        self._accepted = accepted
        return failures

    def _refusal(self, sequence: Sequence) -> str | None:
        params = _params(sequence)
        for each in self._classes:
            try:
                if validate := getattr(each, "validate_params", None):
                    validate(params)
            except _RAISED as error:
                if isinstance(error, ValueError):
                    return str(error)
                _log.exception("%s cannot check the parameters of a sequence", each.__qualname__)
                return f"{each.__qualname__} cannot check them"
        return None

    def _run_all(self, logits: torch.Tensor, sequences: Items[Sequence]) -> tuple[torch.Tensor, list[tuple[int, str]]]:
        """The changed logits, and which rows have failed, with what their clients are told."""
        if not self._takes_batches:
            return self._run_one_by_one(logits, sequences)
        try:
            update = self._order.advance(sequences, _described)
            return _run(self._processors, logits, sequences, update), []
        except _RAISED as error:
            changed, failed = self._run_one_by_one(logits, sequences)
            if failed:
                # Whatever they had become is gone: new ones know no row.
                self._processors, self._order, self._own = self._build(), BatchOrder(), {}
            else:
                self._takes_batches = False
                _log.error(
                    "a logits processor has failed for a batch of %d and for none of its rows alone: from now on each "
                    "sequence has processors of its own, which takes longer",
                    len(sequences),
                    exc_info=error,
                )
            return changed, failed

    def _run_one_by_one(
        self, logits: torch.Tensor, sequences: Items[Sequence]
    ) -> tuple[torch.Tensor, list[tuple[int, str]]]:
        """The same by processors that know one row alone; those of sequences that were in the last batch stay."""
        changed = logits.to(torch.float32, copy=True)
        failed: list[tuple[int, str]] = []
        before, self._own = self._own, {}
        for row, sequence in enumerate(sequences):
            try:
                update: BatchUpdate | None = None
                if (processors := before.get(sequence)) is None:
                    update, processors = BatchUpdate(1, [], [_described(sequence, 0)], []), self._build()
                changed[row] = _run(processors, logits[row : row + 1], [sequence], update)[0]
                self._own[sequence] = processors
            except _RAISED as error:
                _log.exception("a logits processor has failed for a sequence")
                changed[row] = float("nan")
                failed.append((row, f"a logits processor failed with {type(error).__name__}"))
        return changed, failed


def _run(
    processors: Items[LogitsProcessor],
    logits: torch.Tensor,
    sequences: Items[Sequence],
    update: BatchUpdate | None,
) -> torch.Tensor:
    """Returns the logits as the processors want them; leaves those given as they are."""
    work = logits.to(torch.float32, copy=True)
    temperatures = [sequence.sampling_params.temperature for sequence in sequences]
    for processor in processors:
        processor.update_state(update)
        if not processor.is_argmax_invariant():
            work = _checked(processor, work)
        elif max(temperatures) >= GREEDY_BELOW:
            divisors = [temperature if temperature >= GREEDY_BELOW else 1.0 for temperature in temperatures]
            divisor = torch.tensor(divisors).to(work.device)[:, None]
            work = _checked(processor, work / divisor) * divisor
    return work


def _described(sequence: Sequence, index: int) -> AddedRequest:
    assert sequence.output_ids is not None
    prompt_ids = sequence.token_ids[: sequence.num_prompt_tokens]
    return index, _params(sequence), prompt_ids, sequence.output_ids


def _params(sequence: Sequence) -> RequestParams:
    return RequestParams(sequence.sampling_params, sequence.stop.token_ids, sequence.bad_words)


def _checked(processor: LogitsProcessor, logits: torch.Tensor) -> torch.Tensor:
    """What a processor makes of the logits. Raises TypeError if that is not what it may be."""
    expected = logits.shape, logits.dtype, logits.device
    changed = processor.apply(logits)
    if not isinstance(changed, torch.Tensor) or (changed.shape, changed.dtype, changed.device) != expected:
        name = type(processor).__qualname__
        raise TypeError(f"{name}.apply returned something else than a {expected[1]} tensor of {tuple(expected[0])}")
    return changed
