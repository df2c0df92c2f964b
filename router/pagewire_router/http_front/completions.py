"""POST /v1/completions."""

import time
from typing import Any

from pagewire.v1 import inference_pb2

from pagewire_router.admission.validation import MAX_REQUEST_ID_CHARS, Violations, check_request
from pagewire_router.http_front.answers import Generator, stream_answer
from pagewire_router.http_front.beam_fields import BEAM_FIELDS, search_beams
from pagewire_router.http_front.chunks import AnswerOptions
from pagewire_router.http_front.completion_answer import CompletionAnswer
from pagewire_router.http_front.errors import wrong
from pagewire_router.http_front.exchange import Exchange
from pagewire_router.http_front.fields import (
    BOOLEAN,
    INTEGER,
    STRING,
    TOKEN_ID,
    TOKEN_IDS,
    Field,
    FieldTable,
    Kind,
    Schema,
)
from pagewire_router.http_front.names import naming, renaming
from pagewire_router.http_front.sampling_fields import (
    REFUSED,
    REQUEST,
    SAMPLING,
    WITHOUT_EFFECT,
    check_prompt_logprobs,
    constraint_field,
    generate_request,
    parameter_field,
)
from pagewire_router.text.tokenizer import Tokenizer

PATH = "/v1/completions"
MAX_PROMPTS = 1024
MAX_COPIED_BYTES = 64 << 20
"""Each prompt has a copy of the other fields; together they take no more than this."""
Prompt = str | list[int]


def _read_prompt(value: Any, param: str) -> list[Prompt]:
    """Prompts, each a text or token ids."""
    if type(value) is str:
        return [value]
    if type(value) is not list:
        raise wrong(param, "is neither text nor an array")
    if not value:
        raise wrong(param, "is empty; a prompt has at least one token")
    if _is_numbers(value):
        return [TOKEN_IDS.read(value, param)]
    if len(value) > MAX_PROMPTS:
        raise wrong(param, f"holds {len(value)} prompts; accepted: up to {MAX_PROMPTS}")
    return [_read_one(prompt, f"{param}[{index}]") for index, prompt in enumerate(value)]


def _read_one(value: Any, param: str) -> Prompt:
    if type(value) is str:
        return value
    if type(value) is not list or not _is_numbers(value):
        raise wrong(param, "is neither text nor an array of token ids")
    ids: list[int] = TOKEN_IDS.read(value, param)
    return ids


def _is_numbers(values: list[Any]) -> bool:
    return bool(values) and set(map(type, values)) <= {int, float}


_TOKEN_IDS: Schema = {"type": "array", "items": TOKEN_ID, "minItems": 1}
PROMPT = Kind(
    {
        "anyOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "string"}, "minItems": 1},
            _TOKEN_IDS,
            {"type": "array", "items": _TOKEN_IDS, "minItems": 1},
        ],
        "examples": ["The future of AI is"],
    },
    _read_prompt,
)
FIELDS = FieldTable(
    Field("prompt", PROMPT, "Text, token ids, or a list of either.", is_required=True),
    parameter_field("max_tokens"),
    parameter_field("logprobs"),
    parameter_field("prompt_logprobs"),
    Field("echo", BOOLEAN, "Puts the prompt before the text."),
    Field("add_special_tokens", BOOLEAN, "Adds the tokenizer's special tokens to text."),
    Field("suffix", STRING, "Not served.", only=()),
    Field("best_of", INTEGER, "Not served.", only=(1,)),
    Field("prompt_embeds", STRING, "Not served.", only=()),
    *BEAM_FIELDS,
    *SAMPLING,
    *REQUEST,
    *WITHOUT_EFFECT,
    *REFUSED,
)
NAMES = renaming(FIELDS, "prompt")


class Completions:
    """Answers the route's requests."""

    def __init__(self, generator: Generator, tokenizer: Tokenizer | None) -> None:
        """tokenizer: None if the model came without one."""
        self._generator = generator
        self._tokenizer = tokenizer

    async def __call__(self, exchange: Exchange, body: bytes) -> None:
        """Answers one request. Raises HttpError and RouterError as long as no answer has begun."""
        values = exchange.read_fields(FIELDS, body)
        del body  # It may be large, and the request takes long.
        if "stream_options" in values and not values.get("stream"):
            raise wrong("stream_options", "is given without stream")
        check_prompt_logprobs(values)
        exchange.rename = naming(NAMES, constraint_field(values))
        is_echo_alone = values.get("echo", False) and values.get("max_tokens") == 0
        if is_echo_alone:
            values["max_tokens"] = 1  # A request has one at least; it is left out of the answer.
        messages = _messages(values)
        with exchange.cancelled_without_client():
            answer = CompletionAnswer(
                {
                    "id": f"cmpl-{values.get('request_id') or exchange.request_id}",
                    "object": "text_completion",
                    "created": int(time.time()),
                    "model": self._generator.model.name,
                    "system_fingerprint": self._generator.fingerprint,
                },
                AnswerOptions.of(values, has_logprobs="logprobs" in values),
                await self._echoes(values, exchange),
                self._text_of,
                is_echo_alone=is_echo_alone,
                num_echoed=self._num_echoed(values),
            )
            if values.get("stream"):
                await self._stream(exchange, messages, answer)
            else:
                completed = await self._generator.complete(messages, exchange.call)
                await exchange.answer(200, await answer.whole(completed))

    async def _stream(
        self, exchange: Exchange, messages: list[inference_pb2.GenerateRequest], answer: CompletionAnswer
    ) -> None:
        async with self._generator.stream(messages, exchange.call) as streams:
            encoders = answer.chunks([stream.started for stream in streams])
            await stream_answer(exchange, streams, encoders, answer.end)

    def _text_of(self, token_id: int) -> str:
        """The text of a token decoded alone."""
        piece = "" if self._tokenizer is None else self._tokenizer.piece(token_id)
        return piece if isinstance(piece, str) else piece.decode(errors="ignore")

    def _num_echoed(self, values: dict[str, Any]) -> int:
        """Log-probabilities of each token of the prompts that the answer has for each of its sequences."""
        asked: int | None = values.get("prompt_logprobs", values.get("logprobs") if values.get("echo") else None)
        if asked is None:
            return 0
        return 1 + (asked if asked >= 0 else self._generator.inference.limits.vocab_size)

    async def _echoes(self, values: dict[str, Any], exchange: Exchange) -> list[str]:
        """The text that precedes each prompt's output."""
        if not values.get("echo"):
            return [""] * len(values["prompt"])
        echoes = []
        for prompt in values["prompt"]:
            if isinstance(prompt, list):
                request = inference_pb2.DetokenizeRequest(token_ids=_token_ids(prompt))
                prompt = (await self._generator.inference.detokenize(request, exchange.call)).text
            echoes.append(prompt)
        return echoes


def _messages(values: dict[str, Any]) -> list[inference_pb2.GenerateRequest]:
    """One request for each prompt. Raises HttpError."""
    common = generate_request(values, FIELDS)
    if "add_special_tokens" in values:
        common.add_special_tokens = values["add_special_tokens"]
    if values.get("echo") and "logprobs" in values:
        if "prompt_logprobs" not in values:
            common.sampling_params.prompt_logprobs = common.sampling_params.logprobs
        common.return_prompt_token_ids = True
    search_beams(values, FIELDS, common)
    _check_common(common, len(values["prompt"]))
    messages = []
    for number, prompt in enumerate(values["prompt"]):
        message = inference_pb2.GenerateRequest()
        message.CopyFrom(common)
        if isinstance(prompt, str):
            message.text = prompt
        else:
            message.token_ids.ids.extend(_token_ids(prompt))
        if number and message.request_id:
            message.request_id += f"-{number}"
        messages.append(message)
    return messages


def _check_common(common: inference_pb2.GenerateRequest, num_prompts: int) -> None:
    """Checks what all prompts share before it is copied for each. Raises HttpError, InvalidRequest."""
    violations = Violations()
    check_request(common, violations)
    violations.raise_if_any()
    if num_prompts == 1:
        return
    num_chars, accepted = len(common.request_id), MAX_REQUEST_ID_CHARS - len(f"-{num_prompts - 1}")
    if num_chars > accepted:
        raise wrong("request_id", f"has {num_chars} characters; accepted with {num_prompts} prompts: up to {accepted}")
    num_bytes = common.ByteSize()
    if num_bytes * num_prompts > MAX_COPIED_BYTES:
        accepted = MAX_COPIED_BYTES // num_bytes
        description = f"holds {num_prompts} prompts; accepted with the {num_bytes:,} bytes of other fields: {accepted}"
        raise wrong("prompt", description)


def _token_ids(prompt: list[int]) -> list[int]:
    """The token ids of a prompt. Raises HttpError for numbers that can be no token ids."""
    if min(prompt) < 0 or max(prompt) >= 1 << 32:
        raise wrong("prompt", "holds a number that is no token id")
    return prompt
