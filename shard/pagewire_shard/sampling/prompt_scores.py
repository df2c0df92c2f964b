"""Log-probabilities of prompt tokens, for the sequences that asked for them.

The logits behind a prompt's token say how probable the next one was. A step computes them for no position but the last
of each row, so these are computed beside: in pieces of few rows, since a chunk of some thousand tokens would take
gigabytes at once.
"""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from pagewire.v1 import shard_pb2
from pagewire_kernels.sample import gather_logprobs

from pagewire_shard.engine.runner import RunBatch
from pagewire_shard.engine.sequence import Sequence
from pagewire_shard.sampling.logprobs import Logprobs
from pagewire_shard.slot_tables import Upload

MAX_LOGITS_ROWS = 256
"""Positions whose logits exist at a time. More do not make the products faster."""
MAX_TOP_ENTRIES = 1 << 20
"""Most probable tokens that are gathered at a time, over all positions of a piece."""

LogitsAt = Callable[[torch.Tensor, list[int]], torch.Tensor]
"""(hidden states [num_tokens, hidden_size], places) -> logits [len(places), vocab_size]."""


@dataclass(frozen=True, slots=True)
class PromptSpan:
    """Consecutive tokens of a prompt that a row's step yields log-probabilities of."""

    row: int
    """Row in the batch."""
    first_position: int
    token_ids: list[int]
    first_place: int
    """Place, among the tokens that the step computes, of the one before the first."""


@dataclass(frozen=True, slots=True, eq=False)
class PendingPromptScores:
    """Log-probabilities of the prompts' tokens in one step, on the device or on the host."""

    spans: list[PromptSpan]
    """Those of equal num_top follow each other."""
    pieces: list[Logprobs]
    """One row for each token, in the spans' order. A piece holds tokens of equal num_top."""

    def to_host(self, copy: Callable[[torch.Tensor], torch.Tensor]) -> "PendingPromptScores":
        """The same with each tensor copied."""
        return PendingPromptScores(self.spans, [(copy(a), copy(b), copy(c), copy(d)) for a, b, c, d in self.pieces])

    def to_messages(self) -> list[shard_pb2.PromptScores]:
        """The messages, in order of the rows; the pieces must be on the host."""
        messages: list[shard_pb2.PromptScores] = []
        pieces = iter(self.pieces)
        piece, start = None, 0
        for span in self.spans:
            message = shard_pb2.PromptScores(run_index=span.row, first_position=span.first_position)
            num_left = len(span.token_ids)
            while num_left:
                if piece is None or start == len(piece[0]):
                    piece, start = next(pieces), 0
                end = min(start + num_left, len(piece[0]))
                _extend(message, piece, start, end)
                num_left -= end - start
                start = end
            messages.append(message)
        return sorted(messages, key=lambda message: message.run_index)


def _extend(message: shard_pb2.PromptScores, piece: Logprobs, start: int, end: int) -> None:
    logprobs, ranks, top_ids, top_logprobs = (tensor[start:end].flatten().tolist() for tensor in piece)
    message.num_top = piece[2].shape[1]
    message.logprobs.extend(logprobs)
    message.ranks.extend(ranks)
    message.top_token_ids.extend(top_ids)
    message.top_logprobs.extend(top_logprobs)


class PromptScorer:
    """Knows the slots whose sequences want log-probabilities of their prompts, and computes them."""

    def __init__(self, logits_at: LogitsAt, upload: Upload) -> None:
        self._logits_at = logits_at
        self._upload = upload
        self._num_top: dict[int, int] = {}
        """By slot: how many of the most probable tokens."""

    def admit(self, sequence: Sequence) -> None:
        """Takes note of the sequence in its slot, and forgets the one before."""
        num_top = sequence.num_prompt_logprobs
        if num_top is not None:
            self._num_top[sequence.slot] = num_top
        elif self._num_top:
            self._num_top.pop(sequence.slot, None)

    def wants(self, batch: RunBatch) -> bool:
        """Whether a row wants any; batch: as `score` has it."""
        return bool(self._num_top) and next(self._spans(batch), None) is not None

    def score(self, batch: RunBatch, hidden: torch.Tensor) -> PendingPromptScores | None:
        """Computes the log-probabilities that a step's rows yield; None: no row wants any.

        Args:
            batch: The sequences' counts have been moved ahead by this step.
            hidden: [num_tokens or more, hidden_size], as Decoder.forward returns it.
        """
        if not self._num_top:
            return None
        by_num_top: dict[int, list[PromptSpan]] = {}
        for num_top, span in self._spans(batch):
            by_num_top.setdefault(num_top, []).append(span)
        if not by_num_top:
            return None
        spans: list[PromptSpan] = []
        pieces: list[Logprobs] = []
        for num_top, alike in by_num_top.items():
            spans += alike
            pieces += self._gather(alike, num_top, hidden)
        return PendingPromptScores(spans, pieces)

    def _spans(self, batch: RunBatch) -> Iterator[tuple[int, PromptSpan]]:
        first_place = 0
        for row, (sequence, query_len) in enumerate(zip(batch.sequences, batch.query_lens, strict=True)):
            num_top = self._num_top.get(sequence.slot)
            if num_top is not None:
                begin = sequence.num_computed_tokens - query_len
                first = max(begin, sequence.min_recompute_from) + 1
                end = min(sequence.num_computed_tokens + 1, sequence.num_prompt_tokens)
                if first < end:
                    place = first_place + first - 1 - begin
                    yield num_top, PromptSpan(row, first, sequence.token_ids[first:end], place)
            first_place += query_len

    def _gather(self, spans: Items[PromptSpan], num_top: int, hidden: torch.Tensor) -> Iterator[Logprobs]:
        places = [span.first_place + i for span in spans for i in range(len(span.token_ids))]
        token_ids = [token_id for span in spans for token_id in span.token_ids]
        size = min(MAX_LOGITS_ROWS, max(1, MAX_TOP_ENTRIES // num_top)) if num_top else MAX_LOGITS_ROWS
        for start in range(0, len(places), size):
            piece = slice(start, start + size)
            yield gather_logprobs(self._logits_at(hidden, places[piece]), self._upload(token_ids[piece]), num_top)
