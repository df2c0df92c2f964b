"""All routes, by path."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson
from pagewire_common.version import version

from pagewire_router.http_front.answers import Generator
from pagewire_router.http_front.anthropic import COUNT_TOKENS, MESSAGES, Messages
from pagewire_router.http_front.anthropic_request import COUNT_FIELDS
from pagewire_router.http_front.anthropic_request import FIELDS as MESSAGES_FIELDS
from pagewire_router.http_front.app import Handle, Route
from pagewire_router.http_front.chat import FIELDS as CHAT_FIELDS
from pagewire_router.http_front.chat import PATH as CHAT
from pagewire_router.http_front.chat import ChatCompletions
from pagewire_router.http_front.completions import FIELDS as COMPLETIONS_FIELDS
from pagewire_router.http_front.completions import PATH as COMPLETIONS
from pagewire_router.http_front.completions import Completions
from pagewire_router.http_front.error_bodies import anthropic_body, openai_body
from pagewire_router.http_front.exchange import Exchange
from pagewire_router.http_front.openapi import Operation, document
from pagewire_router.http_front.openapi_schemas import CHAT_PARTS, MESSAGES_PARTS, RESPONSE_FORMAT, RESPONSES_PARTS
from pagewire_router.http_front.responses import PATH as RESPONSES
from pagewire_router.http_front.responses import Responses
from pagewire_router.http_front.responses_request import FIELDS as RESPONSES_FIELDS
from pagewire_router.http_front.tokenizing import (
    DETOKENIZE,
    DETOKENIZE_FIELDS,
    TOKENIZE,
    TOKENIZE_FIELDS,
    Tokenizing,
)
from pagewire_router.inference import Inference
from pagewire_router.output.pacer import Pacer
from pagewire_router.parsing.choice import OutputParsers
from pagewire_router.text.tokenizer import Tokenizer

HEALTH, VERSION, OPENAPI, MODELS = "/health", "/version", "/openapi.json", "/v1/models"
ONE_MODEL = f"{MODELS}/{{model}}"
OPEN = (
    Operation(
        "GET", HEALTH, "Says by its status whether a new request would run.", needs_key=False, content_type="text/plain"
    ),
    Operation("GET", VERSION, "Tells the server's version.", needs_key=False, answer="Version"),
    Operation("GET", OPENAPI, "This document.", needs_key=False),
)
"""Served from the start, without a key."""
OF_THE_MODEL = (
    Operation("GET", MODELS, "Lists the served model.", answer="Models"),
    Operation("GET", ONE_MODEL, "Describes the served model.", answer="Model"),
    Operation(
        "POST",
        COMPLETIONS,
        "Continues prompts.",
        COMPLETIONS_FIELDS,
        answer="Completion",
        event="CompletionChunk",
        parts={"response_format": RESPONSE_FORMAT},
    ),
    Operation(
        "POST",
        CHAT,
        "Continues a conversation.",
        CHAT_FIELDS,
        answer="ChatCompletion",
        event="ChatCompletionChunk",
        parts=CHAT_PARTS,
    ),
    Operation(
        "POST",
        RESPONSES,
        "Continues a conversation, as OpenAI's Responses API does.",
        RESPONSES_FIELDS,
        answer="Response",
        event="ResponseEvent",
        parts=RESPONSES_PARTS,
    ),
    Operation(
        "POST",
        MESSAGES,
        "Continues a conversation, as Anthropic's Messages API does.",
        MESSAGES_FIELDS,
        answer="Message",
        event="MessageEvent",
        error="MessagesError",
        parts=MESSAGES_PARTS,
    ),
    Operation(
        "POST",
        COUNT_TOKENS,
        "Counts the tokens of a conversation.",
        COUNT_FIELDS,
        answer="TokenCount",
        error="MessagesError",
        parts=MESSAGES_PARTS,
    ),
    Operation(
        "POST",
        TOKENIZE,
        "Turns text or a conversation into token ids.",
        TOKENIZE_FIELDS,
        answer="Tokens",
        alternatives=("prompt", "messages"),
        parts={name: CHAT_PARTS[name] for name in ("messages", "tools")},
    ),
    Operation("POST", DETOKENIZE, "Turns token ids into text.", DETOKENIZE_FIELDS, answer="Text"),
)
"""Served once there are shards."""
PATHS = tuple(operation.path for operation in OF_THE_MODEL)
ALL_PATHS = (*(operation.path for operation in OPEN), *PATHS)
POST_PATHS = tuple(operation.path for operation in OF_THE_MODEL if operation.method == "POST")
_ANTHROPIC = (MESSAGES, COUNT_TOKENS)


def open_routes(is_ready: Callable[[], bool]) -> Iterator[Route]:
    """Routes that are served from the start."""
    described = document((*OPEN, *OF_THE_MODEL))

    async def health(exchange: Exchange, _body: bytes) -> None:
        await exchange.answer(200 if is_ready() else 503, b"", content_type=b"text/plain")

    async def tell_version(exchange: Exchange, _body: bytes) -> None:
        await exchange.answer(200, orjson.dumps({"version": version()}))

    async def openapi(exchange: Exchange, _body: bytes) -> None:
        await exchange.answer(200, described)

    handles: dict[str, Handle] = {HEALTH: health, VERSION: tell_version, OPENAPI: openapi}
    for operation in OPEN:
        yield Route(operation.method, operation.path, handles[operation.path], needs_key=False)


def model_routes(
    inference: Inference, pacer: Pacer, tokenizer: Tokenizer | None, parsers: OutputParsers | None
) -> Iterator[Route]:
    """The routes of the served model.

    Args:
        pacer: paces the writes of streams.
        tokenizer: None if the model came without one.
        parsers: read reasoning and tool calls from outputs; None: outputs are content.
    """
    generator = Generator(inference, pacer)
    messages, tokenizing = Messages(generator, parsers), Tokenizing(inference, tokenizer)
    described = _describe(inference)
    handles: dict[str, Handle] = {
        MODELS: _answering({"object": "list", "data": [described]}),
        ONE_MODEL: _one_model(inference, described),
        COMPLETIONS: Completions(generator, tokenizer),
        CHAT: ChatCompletions(generator, parsers),
        RESPONSES: Responses(generator, parsers),
        MESSAGES: messages.create,
        COUNT_TOKENS: messages.count_tokens,
        TOKENIZE: tokenizing.tokenize,
        DETOKENIZE: tokenizing.detokenize,
    }
    for operation in OF_THE_MODEL:
        error_body = anthropic_body if operation.path in _ANTHROPIC else openai_body
        yield Route(operation.method, operation.path, handles[operation.path], error_body=error_body)


def _describe(inference: Inference) -> dict[str, Any]:
    """The model object of OpenAI's API."""
    model = inference.get_model()
    return {
        "id": model.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "pagewire",
        "root": model.name,
        "parent": None,
        "max_model_len": model.max_model_len,
    }


def _answering(value: dict[str, Any]) -> Handle:
    """Answers with the same value each time."""
    body = orjson.dumps(value)

    async def answer(exchange: Exchange, _body: bytes) -> None:
        await exchange.answer(200, body)

    return answer


def _one_model(inference: Inference, described: dict[str, Any]) -> Handle:
    answer = _answering(described)

    async def one_model(exchange: Exchange, body: bytes) -> None:
        inference.check_model(exchange.path.removeprefix(f"{MODELS}/"))
        await answer(exchange, body)

    return one_model
