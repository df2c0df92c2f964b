"""Makes the answers of /v1/completions: whole, or as chunks."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
from pagewire.v1 import inference_pb2

from pagewire_router.http_front.answers import (
    FINISH_REASONS,
    Usage,
    by_sequence,
    completions_of,
    prompt_logprobs_of,
    running_usage,
    stop_reason,
)
from pagewire_router.http_front.chunks import DONE, AnswerOptions, ChunkFormat
from pagewire_router.http_front.errors import wrong
from pagewire_router.http_front.event_stream import Outputs
from pagewire_router.http_front.logprobs import LogprobsWriter
from pagewire_router.inference import CompletedRequest
from pagewire_router.output.sequence_output import Delta

MAX_ECHOED_LOGPROBS = 1 << 21
"""Most log-probabilities of one prompt that an answer with several sequences repeats before all of them together."""


class CompletionAnswer:
    """The answer to one request."""

    def __init__(
        self,
        head: Mapping[str, Any],
        options: AnswerOptions,
        echoes: Sequence[str],
        text_of: Callable[[int], str],
        *,
        is_echo_alone: bool,
        num_echoed: int = 0,
    ) -> None:
        """
        Args:
            head: id, object, time and model.
            echoes: for each prompt the text that precedes its output.
            text_of: the text of a token.
            is_echo_alone: outputs are left out.
            num_echoed: log-probabilities of each token of the prompts that are told.
        """
        self.options = options
        self.echoes = echoes
        self.text_of = text_of
        self.is_echo_alone = is_echo_alone
        self.usage = Usage()
        self._head = head
        self._num_echoed = num_echoed

    async def whole(self, completed: Sequence[CompletedRequest]) -> bytes:
        """The body of an answer that is no stream. Raises HttpError."""
        choices = []
        self._check_echo([request.started for request in completed])
        for number, request in enumerate(completed):
            self.usage.add_prompt(request.started)
            prompt = _PromptLogprobs(self, number, request.started)
            prompt.entries = await prompt_logprobs_of(request)
            told = LogprobsWriter.for_vllm(prompt.entries) if self.options.has_prompt_logprobs else None
            for completion in await completions_of(request):
                self.count_end(completion.finished)
                choice = _Choice(self, number, completion.index, request.started, prompt)
                part = choice.part(completion, completion.finished)
                choices.append(part if told is None else {**part, "prompt_logprobs": told})
                if prompt.entries:
                    await asyncio.sleep(0)  # Other calls have turns meanwhile.
        return orjson.dumps({**self._head, "choices": choices, "usage": self.usage.as_json()})

    def _check_echo(self, started: Sequence[inference_pb2.Started]) -> None:
        """Raises HttpError if the prompts' log-probabilities, told again for each sequence, are too many."""
        num_choices = self.options.num_choices
        num_logprobs = num_choices * self._num_echoed * max(each.num_prompt_tokens for each in started)
        if num_choices > 1 and num_logprobs > MAX_ECHOED_LOGPROBS:
            description = f"is {num_choices}, and each sequence repeats the prompt's log-probabilities, "
            raise wrong("n", f"{description}{num_logprobs:,} together; accepted: up to {MAX_ECHOED_LOGPROBS:,}")

    def count_end(self, finished: inference_pb2.Finished) -> None:
        """Counts a sequence that has ended."""
        self.usage.add_end(finished)
        if self.is_echo_alone:
            self.usage.num_completion_tokens = 0

    def chunks(self, started: Sequence[inference_pb2.Started]) -> list["CompletionChunks"]:
        """Makers of chunks, one for each prompt. Raises HttpError."""
        self._check_echo(started)
        for each in started:
            self.usage.add_prompt(each)
        form = ChunkFormat(self._head, self.options)
        return [CompletionChunks(self, form, number, each) for number, each in enumerate(started)]

    def end(self) -> bytes:
        """The last events of a stream."""
        if not self.options.has_usage:
            return DONE
        return ChunkFormat(self._head, self.options).chunk(None, self.usage.as_json()) + DONE


class CompletionChunks:
    """Makes the chunks of one prompt's sequences: one for each sequence that has new text or has ended."""

    def __init__(
        self, answer: CompletionAnswer, form: ChunkFormat, number: int, started: inference_pb2.Started
    ) -> None:
        self._answer = answer
        self._form = form
        self._number = number
        self._prompt = _PromptLogprobs(answer, number, started)
        self._choices = [
            _Choice(answer, number, index, started, self._prompt) for index in range(answer.options.num_choices)
        ]
        self._is_plain = answer.options.is_plain and not answer.echoes[number]
        self._around = [
            form.around(
                b'{"index":%d,"text":' % choice.number, b',"logprobs":null,"finish_reason":null,"stop_reason":null}'
            )
            for choice in self._choices
        ]

    def __call__(self, outputs: Outputs) -> bytes:
        """The events of new outputs. What is told of the prompt comes before all else, and goes with it."""
        for output in outputs if self._answer.echoes[self._number] else ():
            if isinstance(output, inference_pb2.PromptLogprobs):
                self._prompt.entries += output.logprobs
        return b"".join([self._event(*each) for each in by_sequence(outputs)])

    def _event(self, index: int, delta: Delta | None, finished: inference_pb2.Finished | None) -> bytes:
        if finished is not None:
            self._answer.count_end(finished)
        elif self._answer.is_echo_alone:
            return b""
        elif self._is_plain:
            if delta is None or not delta.text:  # A character, or a stop string, may have begun.
                return b""
            before, behind = self._around[index]
            return before + orjson.dumps(delta.text) + behind
        choice = self._choices[index]
        part = choice.part(delta, finished)
        return self._form.chunk(part, choice.usage(finished) if self._answer.options.has_running_usage else None)


class _PromptLogprobs:
    """The log-probabilities of a prompt's tokens, which each of its sequences is preceded by. They are made once."""

    def __init__(self, answer: CompletionAnswer, number: int, started: inference_pb2.Started) -> None:
        """number: of the prompt."""
        self.entries: list[inference_pb2.TokenLogprobs] = []
        """Of the tokens but the first; complete before told() is called."""
        self._answer = answer
        self._echo = answer.echoes[number]
        self._started = started
        self._told: dict[str, Any] | None = None

    def told(self) -> dict[str, Any]:
        """The logprobs object."""
        if self._told is None:
            first = self._started.prompt_token_ids[0]
            writer = LogprobsWriter(as_token_ids=self._answer.options.names_token_ids)
            self._told = writer.for_prompt(first, self._answer.text_of(first), self.entries, self._echo)
        return self._told


class _Choice:
    """One sequence of one prompt, told in one part or in several."""

    def __init__(
        self,
        answer: CompletionAnswer,
        number: int,
        index: int,
        started: inference_pb2.Started,
        prompt: _PromptLogprobs,
    ) -> None:
        """
        Args:
            number: of the prompt.
            index: of the sequence.
            prompt: its log-probabilities.
        """
        options, echo = answer.options, answer.echoes[number]
        self._answer = answer
        self._prompt = prompt
        self.number = number * options.num_choices + index
        self._options = options
        self._echo = echo
        self._started = started
        self._logprobs = LogprobsWriter(as_token_ids=options.names_token_ids, text_offset=len(echo))
        self._is_begun = False
        self._num_tokens = 0

    def part(
        self, output: Delta | inference_pb2.Completion | None, finished: inference_pb2.Finished | None
    ) -> dict[str, Any]:
        """The next part."""
        if self._answer.is_echo_alone:
            output = None
        text = "" if output is None else output.text
        is_first, self._is_begun = not self._is_begun, True
        self._num_tokens += 0 if output is None else len(output.token_ids)
        part: dict[str, Any] = {
            "index": self.number,
            "text": self._echo + text if is_first else text,
            "logprobs": None,
            "finish_reason": None if finished is None else FINISH_REASONS.get(finished.finish_reason),
            "stop_reason": None if finished is None else stop_reason(finished),
        }
        if self._options.has_logprobs:
            part["logprobs"] = self._told_logprobs(output, is_first=is_first)
        if self._options.has_token_ids:
            part["prompt_token_ids"] = list(self._started.prompt_token_ids) if is_first else None
            part["token_ids"] = [] if output is None else list(output.token_ids)
        return part

    def _told_logprobs(
        self, output: Delta | inference_pb2.Completion | None, *, is_first: bool
    ) -> dict[str, Any] | None:
        told = None
        if is_first and self._echo:
            told = self._prompt.told()
        if output is None:
            return told
        of_output = self._logprobs.for_completion(output.logprobs)
        return of_output if told is None else {name: told[name] + of_output[name] for name in told}

    def usage(self, finished: inference_pb2.Finished | None) -> dict[str, Any]:
        """Token counts so far."""
        return running_usage(self._started, self._num_tokens, finished)
