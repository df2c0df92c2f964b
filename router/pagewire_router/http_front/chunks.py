"""The chunks of streamed answers in OpenAI's form: bytes that are prepared once, with the new text between them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from pagewire_router.http_front.error_bodies import openai_error
from pagewire_router.http_front.errors import HttpError

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """What an answer tells beside its text."""

    num_choices: int
    """Sequences of each prompt."""
    has_logprobs: bool
    has_token_ids: bool
    """Token ids of prompts and outputs."""
    names_token_ids: bool
    """Tokens beside log-probabilities are written as token_id:ID."""
    has_usage: bool
    """A stream ends with the token counts."""
    has_running_usage: bool
    """Every chunk has the token counts so far."""
    has_prompt_logprobs: bool
    """An answer that is no stream has the log-probabilities of its prompts."""

    @staticmethod
    def of(values: Mapping[str, Any], *, has_logprobs: bool) -> "AnswerOptions":
        """The options that the fields of a request ask for."""
        stream_options: dict[str, bool] = values.get("stream_options", {})
        has_usage = stream_options.get("include_usage", False)
        return AnswerOptions(
            num_choices=values.get("n", 1),
            has_logprobs=has_logprobs,
            has_token_ids=values.get("return_token_ids", False),
            names_token_ids=values.get("return_tokens_as_token_ids", False),
            has_usage=has_usage,
            has_running_usage=has_usage and stream_options.get("continuous_usage_stats", False),
            has_prompt_logprobs="prompt_logprobs" in values,
        )

    @property
    def is_plain(self) -> bool:
        """Whether chunks tell nothing but text."""
        return not (self.has_logprobs or self.has_token_ids or self.has_running_usage)


class ChunkFormat:
    """Makes the events of one stream."""

    def __init__(self, head: Mapping[str, Any], options: AnswerOptions) -> None:
        """head: the fields that are the same in all chunks."""
        self._opening = b"data: " + orjson.dumps(head)[:-1] + b',"choices":['
        self._closing = b'],"usage":null}\n\n' if options.has_usage else b"]}\n\n"

    def around(self, before_text: bytes, after_text: bytes) -> tuple[bytes, bytes]:
        """What stands before and behind the text in the chunks of one choice, given the parts of its JSON."""
        return self._opening + before_text, after_text + self._closing

    def chunk(self, choice: Mapping[str, Any] | None, usage: Mapping[str, Any] | None = None, **more: Any) -> bytes:
        """Any chunk.

        Args:
            choice: None: the chunk has no choice.
            more: further fields of the chunk.
        """
        described = b"" if choice is None else orjson.dumps(choice)
        closing = self._closing
        if usage is not None:
            closing = b'],"usage":' + orjson.dumps(usage) + b"}\n\n"
        if more:
            closing = b"]," + orjson.dumps(more)[1:-1] + closing[1:]
        return b"".join((self._opening, described, closing))


def error_event(error: HttpError) -> bytes:
    """The last events of a stream whose request has failed."""
    return b'data: {"error":' + orjson.dumps(openai_error(error)) + b"}\n\n" + DONE
