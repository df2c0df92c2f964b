"""All routes, by path."""

import time
from collections.abc import Callable, Iterator

import orjson
from pagewire_common.version import version

from pagewire_router.http_front.answers import Generator
from pagewire_router.http_front.anthropic import COUNT_TOKENS, MESSAGES, Messages
from pagewire_router.http_front.app import Handle, Route
from pagewire_router.http_front.chat import PATH as CHAT
from pagewire_router.http_front.chat import ChatCompletions
from pagewire_router.http_front.completions import PATH as COMPLETIONS
from pagewire_router.http_front.completions import Completions
from pagewire_router.http_front.error_bodies import anthropic_body
from pagewire_router.http_front.exchange import Exchange
from pagewire_router.http_front.responses import PATH as RESPONSES
from pagewire_router.http_front.responses import Responses
from pagewire_router.http_front.tokenizing import DETOKENIZE, TOKENIZE, Tokenizing
from pagewire_router.inference import Inference
from pagewire_router.output.pacer import Pacer
from pagewire_router.parsing.choice import OutputParsers
from pagewire_router.text.tokenizer import Tokenizer

MODELS = "/v1/models"
PATHS = (MODELS, COMPLETIONS, CHAT, RESPONSES, MESSAGES, COUNT_TOKENS, TOKENIZE, DETOKENIZE)
"""Paths that are served once there are shards."""
PROBES = ("/health", "/version")
ALL_PATHS = (*PROBES, *PATHS)


def probe_routes(is_ready: Callable[[], bool]) -> Iterator[Route]:
    """Routes that are served from the start, and need no key."""

    async def health(exchange: Exchange, _body: bytes) -> None:
        await exchange.answer(200 if is_ready() else 503, b"", content_type=b"text/plain")

    async def tell_version(exchange: Exchange, _body: bytes) -> None:
        await exchange.answer(200, orjson.dumps({"version": version()}))

    yield Route("GET", "/health", health, needs_key=False)
    yield Route("GET", "/version", tell_version, needs_key=False)


def api_routes(
    inference: Inference, pacer: Pacer, tokenizer: Tokenizer | None, parsers: OutputParsers | None
) -> Iterator[Route]:
    """The routes of the served model.

    Args:
        pacer: paces the writes of streams.
        tokenizer: None if the model came without one.
        parsers: read reasoning and tool calls from outputs; None: outputs are content.
    """
    generator = Generator(inference, pacer)
    yield Route("GET", MODELS, _models(inference))
    yield Route("POST", COMPLETIONS, Completions(generator))
    yield Route("POST", CHAT, ChatCompletions(generator, parsers))
    yield Route("POST", RESPONSES, Responses(generator, parsers))
    messages = Messages(generator, parsers)
    yield Route("POST", MESSAGES, messages.create, error_body=anthropic_body)
    yield Route("POST", COUNT_TOKENS, messages.count_tokens, error_body=anthropic_body)
    tokenizing = Tokenizing(inference, tokenizer)
    yield Route("POST", TOKENIZE, tokenizing.tokenize)
    yield Route("POST", DETOKENIZE, tokenizing.detokenize)


def _models(inference: Inference) -> Handle:
    model = inference.get_model()
    described = {
        "id": model.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "pagewire",
        "root": model.name,
        "parent": None,
        "max_model_len": model.max_model_len,
    }
    body = orjson.dumps({"object": "list", "data": [described]})

    async def models(exchange: Exchange, _body: bytes) -> None:
        await exchange.answer(200, body)

    return models
