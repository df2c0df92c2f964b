"""The output of one sequence: detokenized, checked for stop strings, held until a front takes it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pagewire.v1 import inference_pb2, shard_pb2

from pagewire_router.output.token_logprobs import TokenLogprobsBuilder
from pagewire_router.text.detokenizer import Detokenizer
from pagewire_router.text.piece_table import Piece
from pagewire_router.text.stop_strings import StopString, StopStrings

_CONTINUATION_BYTES = frozenset(bytes((byte,)) for byte in range(0x80, 0xC0))


@dataclass(slots=True)
class Delta:
    """Output of one sequence since its last delta."""

    index: int
    """Index of the sequence within the request."""
    text: str
    """Text that is certain: empty if the client wants token ids alone, or while a stop string may have begun."""
    token_ids: list[int]
    """[num_tokens]; text that was held back may come with none."""
    logprobs: list[inference_pb2.TokenLogprobs]
    """[num_tokens], or empty if the client has not asked for log-probabilities."""


class SequenceOutput:
    """One of a request's n sequences."""

    __slots__ = (
        "_cumulative_logprob",
        "_detokenizer",
        "_logprobs",
        "_logprobs_builder",
        "_min_tokens",
        "_stop_strings",
        "_stop_token_ids",
        "_text",
        "_token_ids",
        "finished",
        "index",
        "num_tokens",
    )

    def __init__(
        self,
        index: int,
        params: inference_pb2.SamplingParams,
        eos_token_ids: tuple[int, ...],
        detokenizer: Detokenizer | None,
        stops: Sequence[StopString],
        piece_of: Callable[[int], Piece] | None = None,
    ) -> None:
        """
        Args:
            detokenizer: None if the client wants token ids alone.
            stops: those of params, compiled for all of the request's sequences.
            piece_of: Tokenizer.piece, for the texts of tokens beside log-probabilities; None: there are none.
        """
        self.index = index
        self._detokenizer = detokenizer
        self._stop_strings = StopStrings(stops, include_in_output=params.include_stop_str_in_output) if stops else None
        # A stop token ends the sequence wherever it stands, and its text is left out.
        self._stop_token_ids: frozenset[int] = (
            frozenset() if params.include_stop_str_in_output else frozenset((*params.stop_token_ids, *eos_token_ids))
        )
        self._min_tokens = params.min_tokens
        self._text = ""
        self._token_ids: list[int] = []
        self._logprobs_builder = TokenLogprobsBuilder(piece_of) if params.HasField("logprobs") else None
        self._logprobs: list[inference_pb2.TokenLogprobs] = []
        self._cumulative_logprob = 0.0
        self.num_tokens = 0
        """Tokens sampled."""
        self.finished: inference_pb2.Finished | None = None
        """End of the sequence; None while it runs."""

    def append(self, token_ids: list[int], logprobs: Sequence[shard_pb2.SequenceLogprobs] | None) -> bool:
        """Appends the next tokens up to one that completes a stop string. Returns whether one was found."""
        if self._stop_strings is not None and len(token_ids) > 1:
            return any(
                self.append([token], logprobs[i : i + 1] if logprobs else None) for i, token in enumerate(token_ids)
            )
        self._token_ids += token_ids
        self.num_tokens += len(token_ids)
        if logprobs and self._logprobs_builder is not None:
            self._logprobs += map(self._logprobs_builder.build, token_ids, logprobs)
            self._cumulative_logprob += sum([entry.logprob for entry in logprobs])
        if self._detokenizer is None:
            return False
        num_new = len(token_ids)
        if token_ids[-1] in self._stop_token_ids:
            token_ids = token_ids[:-1]
        if self._stop_strings is None:
            self._text += self._detokenizer.feed(token_ids)
            return False
        num_passed_over = self._min_tokens - self.num_tokens + num_new
        if num_passed_over > 0:
            # A stop string may begin in the first min_tokens tokens, but not end there.
            self._text += self._stop_strings.pass_over(self._detokenizer.feed(token_ids[:num_passed_over]))
            token_ids = token_ids[num_passed_over:]
        self._text += self._stop_strings.feed(self._detokenizer.feed(token_ids))
        return self._stop_strings.matched is not None

    def resume(self, token_ids: list[int]) -> bool:
        """Takes over the next tokens that the client has, up to one that completes a stop string.

        Returns whether one was found. Their text is held like any other until drop_text() says how much is not new.
        """
        builder, self._logprobs_builder = self._logprobs_builder, None
        stopped = self.append(token_ids, None)
        self._logprobs_builder, self._token_ids = builder, []
        if builder is not None:
            for token_id in token_ids:
                builder.pass_over(token_id)
        return stopped

    def resume_logprobs(self, cumulative_logprob: float) -> None:
        """The sum of the log-probabilities that the client has."""
        self._cumulative_logprob = cumulative_logprob

    def drop_tokens(self, token_ids: Sequence[int]) -> bool:
        """Removes the first tokens, which the client has. Returns whether they are these."""
        num_tokens = len(token_ids)
        is_same = self._token_ids[:num_tokens] == list(token_ids)
        self._token_ids = self._token_ids[num_tokens:]
        return is_same

    def drop_text(self, num_bytes: int) -> bool:
        """Removes the first bytes of text, which the client has. Returns whether a character of it ends there."""
        encoded = self._text.encode()
        if not 0 <= num_bytes <= len(encoded) or encoded[num_bytes : num_bytes + 1] in _CONTINUATION_BYTES:
            return False
        self._text = encoded[num_bytes:].decode()
        return True

    def finish(
        self,
        reason: "inference_pb2.FinishReason.ValueType",
        stop_token_id: int | None,
        usage: inference_pb2.Usage,
    ) -> None:
        """Ends the sequence: text that was held back becomes certain."""
        stop_string = self._flush()
        self.finished = inference_pb2.Finished(index=self.index, finish_reason=reason, usage=usage)
        if self._logprobs_builder is not None:
            self.finished.cumulative_logprob = self._cumulative_logprob
        if stop_string is not None:
            self.finished.stop_string = stop_string
        elif stop_token_id is not None:
            self.finished.stop_token_id = stop_token_id

    def _flush(self) -> str | None:
        """Releases held text; returns the stop string that ended the sequence, if one did."""
        if self._detokenizer is None:
            return None
        text = self._detokenizer.flush()
        if self._stop_strings is None:
            self._text += text
            return None
        take = self._stop_strings.feed if self.num_tokens > self._min_tokens else self._stop_strings.pass_over
        self._text += take(text) + self._stop_strings.flush()
        return self._stop_strings.matched

    def take_delta(self) -> Delta | None:
        """Text and tokens since the last call; None if there are none."""
        text, token_ids, logprobs = self._text, self._token_ids, self._logprobs
        if not token_ids and not text:
            return None
        self._text, self._token_ids, self._logprobs = "", [], []
        return Delta(self.index, text, token_ids, logprobs)

    def take_completion(self) -> inference_pb2.Completion:
        """The whole sequence, if no delta was taken before. Frees what it was made of."""
        completion = inference_pb2.Completion(
            index=self.index,
            text=self._text,
            token_ids=self._token_ids,
            logprobs=self._logprobs,
            finished=self.finished,
        )
        self._text, self._token_ids, self._logprobs = "", [], []
        return completion
