"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's Messages API."""

import orjson
from pagewire.v1 import inference_pb2

from pagewire_router.http_front.answers import Generator, stream_answer
from pagewire_router.http_front.anthropic_answer import AnthropicAnswer, event
from pagewire_router.http_front.anthropic_request import COUNT_FIELDS, FIELDS, NAMES, generate_request, turn_of
from pagewire_router.http_front.error_bodies import anthropic_error
from pagewire_router.http_front.errors import HttpError
from pagewire_router.http_front.exchange import Exchange
from pagewire_router.http_front.names import naming
from pagewire_router.http_front.turns import check_num_parts
from pagewire_router.parsing.choice import OutputParsers

MESSAGES, COUNT_TOKENS = "/v1/messages", "/v1/messages/count_tokens"
PING = event("ping")
"""The API's own sign of life."""


def _error_event(error: HttpError) -> bytes:
    return event("error", error=anthropic_error(error))


class Messages:
    """Answers the requests of both routes."""

    def __init__(self, generator: Generator, parsers: OutputParsers | None) -> None:
        """parsers: read reasoning and calls from outputs; None: outputs are text."""
        self._generator = generator
        self._parsers = parsers

    async def create(self, exchange: Exchange, body: bytes) -> None:
        """Answers one request. Raises HttpError and RouterError as long as no answer has begun."""
        values = exchange.read_fields(FIELDS, body)
        del body  # It may be large, and the request takes long.
        check_num_parts(values, self._generator.model.max_model_len)
        turn = turn_of(values)
        exchange.rename = naming(NAMES, "tool_choice" if turn.is_forced else "output_config.format")
        message = generate_request(values)
        turn.fill(message, self._generator.model, self._parsers)
        head = {"id": f"msg_{exchange.request_id}", "model": self._generator.model.name}

        def answer(started: inference_pb2.Started) -> AnthropicAnswer:
            return AnthropicAnswer(head, turn.reader(self._parsers, started), started)

        with exchange.cancelled_without_client():
            if not values.get("stream"):
                (completed,) = await self._generator.complete([message], exchange.call)
                await exchange.answer(200, await answer(completed.started).whole(completed))
                return
            async with self._generator.stream([message], exchange.call) as streams:
                events = answer(streams[0].started).events()
                await stream_answer(exchange, streams, [events], bytes, _error_event, PING)

    async def count_tokens(self, exchange: Exchange, body: bytes) -> None:
        """Counts the tokens of a request. Raises HttpError, RouterError."""
        values = exchange.read_fields(COUNT_FIELDS, body)
        self._generator.inference.check_model(values.get("model"))
        check_num_parts(values, self._generator.model.max_model_len)
        exchange.rename = NAMES
        request = inference_pb2.TokenizeRequest()
        turn_of(values).fill_chat(request.chat)
        answer = await self._generator.inference.tokenize(request, exchange.call)
        await exchange.answer(200, orjson.dumps({"input_tokens": len(answer.token_ids)}))
