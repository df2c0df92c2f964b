"""The output of one sequence on its way to the client: detokenized, checked for stop strings, held until written."""

from collections.abc import Callable, Sequence

from pagewire.v1 import inference_pb2, shard_pb2

from pagewire_router.grpc_front.delta_encoding import encode_delta
from pagewire_router.output.token_logprobs import TokenLogprobsBuilder
from pagewire_router.text.detokenizer import Detokenizer
from pagewire_router.text.piece_table import Piece
from pagewire_router.text.stop_strings import StopString, StopStrings

MAX_DELTA_BYTES = 512 * 1024
"""Larger ones are cut in several; the contract allows 1 MiB."""


class SequenceOutput:
    """One of a request's n sequences."""

    __slots__ = (
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
        # A stop token ends the sequence wherever it comes, and its text is left out.
        self._stop_token_ids: frozenset[int] = (
            frozenset() if params.include_stop_str_in_output else frozenset((*params.stop_token_ids, *eos_token_ids))
        )
        self._min_tokens = params.min_tokens
        self._text = ""
        self._token_ids: list[int] = []
        self._logprobs_builder = TokenLogprobsBuilder(piece_of) if params.logprobs is not None else None
        self._logprobs: list[inference_pb2.TokenLogprobs] = []
        self.num_tokens = 0
        """Tokens sampled."""
        self.finished: inference_pb2.Finished | None = None
        """How the sequence ended, once it has."""

    def append(self, token_ids: list[int], logprobs: Sequence[shard_pb2.SequenceLogprobs] | None) -> bool:
        """Takes the next tokens. True: a stop string was found."""
        self._token_ids += token_ids
        self.num_tokens += len(token_ids)
        if logprobs and self._logprobs_builder is not None:
            self._logprobs += map(self._logprobs_builder.build, token_ids, logprobs)
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

    def finish(
        self,
        reason: "inference_pb2.FinishReason.ValueType",
        stop_token_id: int | None,
        usage: inference_pb2.Usage,
    ) -> None:
        """The sequence ends: what was held back becomes certain."""
        stop_string = self._flush()
        self.finished = inference_pb2.Finished(index=self.index, finish_reason=reason, usage=usage)
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

    def take_deltas(self) -> list[bytes]:
        """What came since the last call, as serialized GenerateResponses; normally one, none if nothing came."""
        text, token_ids, logprobs = self._text, self._token_ids, self._logprobs
        if not token_ids and not text:
            return []
        self._text, self._token_ids, self._logprobs = "", [], []
        num_bytes = 4 * len(text) + 5 * len(token_ids) + sum(entry.ByteSize() + 4 for entry in logprobs)
        if num_bytes <= MAX_DELTA_BYTES:
            return [encode_delta(self.index, text, token_ids, logprobs)]
        return self._cut(num_bytes // MAX_DELTA_BYTES + 1, text, token_ids, logprobs)

    def _cut(
        self, num_parts: int, text: str, token_ids: list[int], logprobs: list[inference_pb2.TokenLogprobs]
    ) -> list[bytes]:
        """The same in equal parts: a client that did not read for long gets several messages."""
        num_chars, num_tokens = -(-len(text) // num_parts), -(-len(token_ids) // num_parts)
        parts = []
        for part in range(num_parts):
            tokens = slice(part * num_tokens, (part + 1) * num_tokens)
            part_text = text[part * num_chars : (part + 1) * num_chars]
            parts.append(encode_delta(self.index, part_text, token_ids[tokens], logprobs[tokens]))
        return parts

    def take_completion(self) -> inference_pb2.Completion:
        """The whole sequence, if nothing was taken before. What it was made of is let go of."""
        completion = inference_pb2.Completion(
            index=self.index,
            text=self._text,
            token_ids=self._token_ids,
            logprobs=self._logprobs,
            finished=self.finished,
        )
        self._text, self._token_ids, self._logprobs = "", [], []
        return completion
