"""POST /v1/responses."""

from pagewire.v1 import inference_pb2

from pagewire_router.http_front.answers import Generator, stream_answer
from pagewire_router.http_front.exchange import Exchange
from pagewire_router.http_front.names import naming
from pagewire_router.http_front.responses_answer import ResponseAnswer
from pagewire_router.http_front.responses_request import FIELDS, NAMES, generate_request, has_logprobs, turn_of
from pagewire_router.http_front.turns import check_num_parts
from pagewire_router.parsing.choice import OutputParsers

PATH = "/v1/responses"


class Responses:
    """Answers the route's requests."""

    def __init__(self, generator: Generator, parsers: OutputParsers | None) -> None:
        """parsers: read reasoning and calls from outputs; None: outputs are text."""
        self._generator = generator
        self._parsers = parsers

    async def __call__(self, exchange: Exchange, body: bytes) -> None:
        """Answers one request. Raises HttpError and RouterError as long as no answer has begun."""
        values = exchange.read_fields(FIELDS, body)
        del body  # It may be large, and the request takes long.
        check_num_parts(values, self._generator.model.max_model_len)
        turn = turn_of(values)
        exchange.rename = naming(NAMES, "tool_choice" if turn.is_forced else "text.format")
        message = generate_request(values)
        turn.fill(message, self._generator.model, self._parsers)
        response_id = f"resp_{values.get('request_id') or exchange.request_id}"
        model = self._generator.model.name

        def answer(started: inference_pb2.Started) -> ResponseAnswer:
            reader = turn.reader(self._parsers, started)
            return ResponseAnswer(response_id, model, values, reader, has_logprobs=has_logprobs(values))

        with exchange.cancelled_without_client():
            if not values.get("stream"):
                (completed,) = await self._generator.complete([message], exchange.call)
                await exchange.answer(200, await answer(completed.started).whole(completed))
                return
            async with self._generator.stream([message], exchange.call) as streams:
                streamed = answer(streams[0].started)
                await stream_answer(exchange, streams, [streamed], bytes, streamed.failed)
