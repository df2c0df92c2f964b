"""Puts the events of a stream together to answers, as vLLM's engines return them."""

from enum import Enum

from pagewire.events import Event, PromptLogprobs, SequenceFinished, Started, TokenDelta
from pagewire.outputs import CompletionOutput, CompletionOutputs, RequestOutput


class RequestOutputKind(Enum):
    """What the answers of a request hold that come while it runs."""

    CUMULATIVE = 0
    """Everything so far."""
    DELTA = 1
    """What is new since the last answer."""
    FINAL_ONLY = 2
    """There is one answer, when all sequences have finished."""


class Assembly:
    """The answer to one request, as far as it has come."""

    def __init__(
        self,
        request_id: str,
        prompt: str | None,
        kind: RequestOutputKind,
        num_sequences: int,
        *,
        has_prompt_logprobs: bool,
    ) -> None:
        self._kind = kind
        self._answer = RequestOutput(request_id, prompt, [], CompletionOutputs(), finished=False)
        if has_prompt_logprobs:
            self._answer.prompt_logprobs = [None]
        self._sequences = [CompletionOutput(index, "", []) for index in range(num_sequences)]
        self._new: set[int] = set()
        """Indices of the sequences that have something new."""

    @property
    def is_finished(self) -> bool:
        """All sequences have finished."""
        return all(sequence.finished() for sequence in self._sequences)

    def take(self, event: Event) -> None:
        """Takes the next event."""
        match event:
            case Started():
                self._answer.prompt_token_ids = event.prompt_token_ids
                self._answer.seed = event.seed
            case PromptLogprobs():
                assert self._answer.prompt_logprobs is not None
                self._answer.prompt_logprobs += event.logprobs
            case TokenDelta():
                sequence = self._sequences[event.index]
                sequence.text += event.text
                sequence.token_ids += event.token_ids
                if event.logprobs is not None:
                    sequence.logprobs = (sequence.logprobs or []) + event.logprobs
                self._new.add(event.index)
            case SequenceFinished():
                sequence = self._sequences[event.index]
                sequence.finish_reason, sequence.stop_reason = event.finish_reason, event.stop_reason
                sequence.usage, sequence.cumulative_logprob = event.usage, event.cumulative_logprob
                self._new.add(event.index)

    def output(self) -> RequestOutput | None:
        """What there is to tell; None: nothing yet."""
        is_finished = self.is_finished
        if self._kind is RequestOutputKind.FINAL_ONLY and not is_finished:
            return None
        if not self._new:
            return None
        shown = [
            each for each in self._sequences if self._kind is not RequestOutputKind.DELTA or each.index in self._new
        ]
        answer = RequestOutput(
            self._answer.request_id,
            self._answer.prompt,
            self._answer.prompt_token_ids,
            CompletionOutputs(_copy(each) for each in shown),
            finished=is_finished,
            seed=self._answer.seed,
            prompt_logprobs=self._answer.prompt_logprobs,
        )
        if self._kind is RequestOutputKind.DELTA:
            for each in shown:
                each.text, each.token_ids, each.logprobs = "", [], None
        self._new.clear()
        return answer


def _copy(output: CompletionOutput) -> CompletionOutput:
    """A copy that later tokens do not change."""
    return CompletionOutput(
        output.index,
        output.text,
        list(output.token_ids),
        output.cumulative_logprob,
        None if output.logprobs is None else list(output.logprobs),
        output.finish_reason,
        output.stop_reason,
        output.usage,
    )
