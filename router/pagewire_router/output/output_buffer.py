"""Buffers the output of one request: takes its tokens, and hands text and ends to the front."""

from collections.abc import Callable, Iterator
from typing import Protocol

from pagewire.v1 import inference_pb2, shard_pb2

from pagewire_router.beams.search import Hypothesis
from pagewire_router.errors import Aborted, RouterError
from pagewire_router.output.prompt_output import PromptOutput
from pagewire_router.output.sequence_output import Delta, SequenceOutput
from pagewire_router.text.detokenizer import Detokenizer
from pagewire_router.text.piece_table import Piece
from pagewire_router.text.stop_strings import StopString

Output = inference_pb2.PromptLogprobs | Delta | inference_pb2.Finished
"""What a front writes as one message, or as several if it is large."""


class OutputListener(Protocol):
    """Told when there is output to take. See pacer.py for the one that paces the writes of a stream."""

    def notify(self) -> None:
        """There are new tokens."""

    def notify_now(self) -> None:
        """A sequence has ended, or the request has failed."""


class OutputBuffer:
    """Implements OutputSink (see request.py). Everything runs on the event loop's thread."""

    __slots__ = (
        "_listener",
        "_num_prompt_tokens",
        "_num_unfinished",
        "_params",
        "_prompt",
        "_received",
        "_sequences",
        "_taken",
        "error",
        "num_tokens",
    )

    def __init__(
        self,
        params: inference_pb2.SamplingParams,
        num_prompt_tokens: int,
        eos_token_ids: tuple[int, ...],
        new_detokenizer: Callable[[], Detokenizer] | None,
        listener: OutputListener,
        piece_of: Callable[[int], Piece] | None = None,
        prompt: PromptOutput | None = None,
    ) -> None:
        """
        Args:
            new_detokenizer: None if the client wants token ids alone.
            piece_of: Tokenizer.piece; None likewise.
            prompt: takes the log-probabilities of the prompt; None: they were not asked for.
        """
        stops = [StopString(stop) for stop in params.stop]
        self._sequences = [
            SequenceOutput(
                index, params, eos_token_ids, new_detokenizer() if new_detokenizer else None, stops, piece_of
            )
            for index in range(params.n)
        ]
        self._prompt = prompt
        self._params = params
        self._listener = listener
        self._num_prompt_tokens = num_prompt_tokens
        self._num_unfinished = params.n
        self._taken = [False] * params.n
        self._received: dict[int, inference_pb2.ResumedSequence] = {}
        """What the client of a resumed request has whose sequences ended before, or that begin anew: beams."""
        self.num_tokens = 0
        """Tokens sampled, over all sequences; those that a client had when it resumed the request do not count."""
        self.error: RouterError | None = None
        """Why the request failed; None: it has not."""

    @property
    def is_done(self) -> bool:
        """All sequences have ended, or the request has failed."""
        return self._num_unfinished == 0 or self.error is not None

    @property
    def is_all_taken(self) -> bool:
        """The end of every sequence was taken."""
        return all(self._taken)

    def finish_reasons(self) -> list["inference_pb2.FinishReason.ValueType"]:
        """The finish reason of each sequence; UNSPECIFIED if it still runs. Those that had ended before the request was
        resumed are left out."""
        return [
            inference_pb2.FINISH_REASON_UNSPECIFIED if sequence.finished is None else sequence.finished.finish_reason
            for sequence in self._sequences
            if not (sequence.index in self._received and self._received[sequence.index].finished)
        ]

    # A request that is resumed: what its client has. Called before anything else.

    def pass_over_prompt(self, num_positions: int) -> None:
        """The client has the log-probabilities of the prompt's first positions."""
        if self._prompt is not None:
            self._prompt.pass_over(num_positions)

    def resume_logprobs(self, index: int, cumulative_logprob: float) -> None:
        """The client has log-probabilities of a sequence with this sum."""
        self._sequences[index].resume_logprobs(cumulative_logprob)

    def resume(self, index: int, token_ids: list[int]) -> bool:
        """The client has the next tokens of a sequence. Returns whether a stop string ends the sequence there."""
        return self._sequences[index].resume(token_ids)

    def end_resumed(self, received: inference_pb2.ResumedSequence) -> None:
        """The client has the end of a sequence too."""
        self._received[received.index] = received
        self._taken[received.index] = True
        self._num_unfinished -= 1

    def begin_anew(self, received: inference_pb2.ResumedSequence) -> None:
        """A sequence runs again from its beginning; what the client has of it is left out of the output."""
        self._received[received.index] = received

    def drop_text(self, index: int, num_bytes: int) -> bool:
        """The client has so much of a sequence's text. Returns whether that can be."""
        return self._sequences[index].drop_text(num_bytes)

    def notify_resumed(self) -> None:
        """There may be text, or an end, that the client does not have."""
        self._listener.notify_now()

    def on_prompt_scores(self, scores: shard_pb2.PromptScores) -> None:
        """See OutputSink."""
        assert self._prompt is not None, "nobody has asked for them"
        self._prompt.append(scores)
        self._listener.notify()

    def on_tokens(self, index: int, token_ids: list[int], logprobs: list[shard_pb2.SequenceLogprobs] | None) -> bool:
        """See OutputSink."""
        self.num_tokens += len(token_ids)
        stopped = self._sequences[index].append(token_ids, logprobs)
        self._listener.notify()
        return stopped

    def on_finished(
        self, index: int, reason: "inference_pb2.FinishReason.ValueType", stop_token_id: int | None, num_cached: int
    ) -> None:
        """See OutputSink."""
        sequence = self._sequences[index]
        sequence.finish(reason, stop_token_id, self._usage(sequence, num_cached))
        self._num_unfinished -= 1
        self._listener.notify_now()

    def on_beams(self, hypotheses: list[Hypothesis], num_cached: int) -> None:
        """See OutputSink."""
        del self._sequences[len(hypotheses) :], self._taken[len(hypotheses) :]
        for sequence, hypothesis in zip(self._sequences, hypotheses, strict=True):
            token_ids = hypothesis.beam.token_ids()
            self.num_tokens += len(token_ids)
            sequence.append(token_ids, None)
            is_own = hypothesis.is_stopped and token_ids[-1] in self._params.stop_token_ids
            sequence.finish(
                inference_pb2.FINISH_REASON_STOP if hypothesis.is_stopped else inference_pb2.FINISH_REASON_LENGTH,
                token_ids[-1] if is_own else None,
                self._usage(sequence, num_cached),
            )
            assert sequence.finished is not None
            sequence.finished.cumulative_logprob = hypothesis.beam.cumulative_logprob
            sequence.finished.beam_score = hypothesis.score
            received = self._received.get(sequence.index)
            if received is not None and not self._drop_beam(sequence, received):
                self.on_failed(Aborted("the search has other results than those that were received; ask anew"))
                return
        self._num_unfinished = 0
        self._listener.notify_now()

    def _drop_beam(self, sequence: SequenceOutput, received: inference_pb2.ResumedSequence) -> bool:
        """Leaves out what the client has of a beam. Returns whether it can have that."""
        if received.finished:
            sequence.take_delta()
            return True
        return sequence.drop_tokens(received.token_ids) and sequence.drop_text(received.text_bytes_received)

    def _usage(self, sequence: SequenceOutput, num_cached: int) -> inference_pb2.Usage:
        return inference_pb2.Usage(
            prompt_tokens=self._num_prompt_tokens, completion_tokens=sequence.num_tokens, cached_tokens=num_cached
        )

    def on_failed(self, error: RouterError) -> None:
        """See OutputSink."""
        self.error = error
        self._listener.notify_now()

    def take(self) -> list[Output]:
        """Deltas and ends since the last call, sequence by sequence; an end follows the last delta of its sequence.

        Log-probabilities of the prompt come first, a part at a time; the listener is notified of the rest. Sequences of
        another shard group may have tokens before the last part is there (groups/request_parts.py).
        """
        if self._prompt is not None and not self._prompt.is_all_taken:
            if not self._prompt.has_output:
                return []
            part = self._prompt.take()
            self._listener.notify_now()
            return [part]
        taken: list[Output] = []
        for sequence in self._sequences:
            delta = sequence.take_delta()
            if delta is not None:
                taken.append(delta)
            if sequence.finished is not None and not self._taken[sequence.index]:
                self._taken[sequence.index] = True
                taken.append(sequence.finished)
        return taken

    def take_prompt_logprobs(self) -> Iterator[inference_pb2.PromptLogprobs]:
        """All log-probabilities of the prompt, part by part. Not to be mixed with take()."""
        while self._prompt is not None and self._prompt.has_output:
            yield self._prompt.take()

    def take_completions(self) -> Iterator[inference_pb2.Completion]:
        """All sequences whole, each made when it is asked for. Not to be mixed with take()."""
        return (sequence.take_completion() for sequence in self._sequences)
