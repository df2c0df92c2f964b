"""The log-probabilities of a request's prompt: held as they come from the shards until a front takes them."""

from collections import deque
from collections.abc import Callable, Sequence

from pagewire.v1 import inference_pb2, shard_pb2

from pagewire_router.output.token_logprobs import TokenLogprobsBuilder
from pagewire_router.text.piece_table import Piece

MAX_PART_ENTRIES = 2048
"""Log-probabilities of a part: some tens of kilobytes, and a millisecond of the event loop. A part has one position
at least, however many it has."""


class PromptOutput:
    """The log-probabilities of one prompt, in order of position."""

    __slots__ = ("_builder", "_next_position", "_offset", "_scores", "_token_ids")

    def __init__(self, token_ids: Sequence[int], piece_of: Callable[[int], Piece] | None) -> None:
        """
        Args:
            token_ids: the prompt's.
            piece_of: Tokenizer.piece; None if the client wants token ids alone.
        """
        self._token_ids = token_ids
        self._builder = TokenLogprobsBuilder(piece_of)
        self._builder.pass_over(token_ids[0])
        self._scores: deque[shard_pb2.PromptScores] = deque()
        self._offset = 0
        """Positions of the first of them that were taken."""
        self._next_position = 1

    @property
    def has_output(self) -> bool:
        """Whether there is something to take."""
        return bool(self._scores)

    @property
    def is_all_taken(self) -> bool:
        """Whether the last position was taken."""
        return self._next_position == len(self._token_ids)

    def pass_over(self, num_positions: int) -> None:
        """The client has the first positions."""
        for token_id in self._token_ids[1 : 1 + num_positions]:
            self._builder.pass_over(token_id)
        self._next_position += num_positions

    def append(self, scores: shard_pb2.PromptScores) -> None:
        """Appends the log-probabilities of the next tokens, one at least."""
        self._scores.append(scores)

    def take(self) -> inference_pb2.PromptLogprobs:
        """The next positions that have come, as many as make one part."""
        part = inference_pb2.PromptLogprobs(first_position=self._next_position)
        num_entries = 0
        while self._scores and (not num_entries or num_entries + self._scores[0].num_top <= MAX_PART_ENTRIES):
            part.logprobs.append(self._build_next())
            num_entries += 4 + self._scores[0].num_top
            self._advance()
        return part

    def _build_next(self) -> inference_pb2.TokenLogprobs:
        scores, offset = self._scores[0], self._offset
        top = slice(offset * scores.num_top, (offset + 1) * scores.num_top)
        entry = shard_pb2.SequenceLogprobs(
            logprob=scores.logprobs[offset],
            rank=scores.ranks[offset],
            top_token_ids=scores.top_token_ids[top],
            top_logprobs=scores.top_logprobs[top],
        )
        return self._builder.build(self._token_ids[self._next_position], entry)

    def _advance(self) -> None:
        self._next_position += 1
        self._offset += 1
        if self._offset == len(self._scores[0].logprobs):
            self._scores.popleft()
            self._offset = 0
