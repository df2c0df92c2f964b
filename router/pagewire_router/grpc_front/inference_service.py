"""The public gRPC service: admits requests, submits them to the engine, streams what comes back."""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc
from google.protobuf import message as protobuf
from pagewire.v1 import inference_pb2

from pagewire_router.admission.admission import Admission, Context
from pagewire_router.admission.validation import (
    Limits,
    Violations,
    check_num_token_ids,
    check_request_id,
    check_token_ids,
)
from pagewire_router.config import MAX_MESSAGE_BYTES, RouterConfig
from pagewire_router.engine import Engine
from pagewire_router.errors import FieldViolation, InvalidRequest, RequestAlreadyExists, RouterError, status_code
from pagewire_router.grpc_front.arrival import ArrivalNote
from pagewire_router.grpc_front.message_decoder import decode
from pagewire_router.grpc_front.reception import Reception
from pagewire_router.grpc_front.rpc_status import abort
from pagewire_router.metrics.request_metrics import Metrics
from pagewire_router.metrics.request_timer import RequestTimer
from pagewire_router.output.pacer import StreamWriter
from pagewire_router.output.request_output import RequestOutput
from pagewire_router.request import Request
from pagewire_router.text.template_process import TemplateProcess
from pagewire_router.text.text_threads import CHARS_PER_TOKEN
from pagewire_router.text.tokenizer import Tokenizer

SERVICE_NAME = "pagewire.v1.Inference"
COMPLETIONS_PER_TURN = 4
"""Sequences of one answer that are encoded in one turn of the event loop."""
DEADLINE_SLACK_S = 0.1
"""A call that is cancelled so shortly before its deadline was ended by it."""
M = TypeVar("M", bound=protobuf.Message)
T = TypeVar("T")
_log = logging.getLogger(__name__)


class InferenceService:
    """The Inference service over one started engine. Requests and answers pass as bytes; see handler()."""

    def __init__(
        self,
        config: RouterConfig,
        engine: Engine,
        tokenizer: Tokenizer | None,
        writer: StreamWriter,
        metrics: Metrics,
        template_process: TemplateProcess | None = None,
    ) -> None:
        """
        Args:
            tokenizer: None if the model came without one; then token ids alone are served.
            template_process: renders chat templates that clients send; None: such templates are refused.
        """
        self._config = config
        self._engine = engine
        self._model = engine.model
        self._tokenizer = tokenizer
        self._writer = writer
        self._metrics = metrics
        self._limits = Limits.of(engine.model, max_n=config.max_n, max_logprobs=config.max_logprobs)
        self._admission = Admission(
            engine.model,
            self._limits,
            tokenizer,
            config.max_request_time_s,
            template_process=template_process,
            is_tracing=bool(config.trace_exporters),
        )
        self._reception = Reception(config.max_receive_message_bytes or MAX_MESSAGE_BYTES, metrics.count_refused)
        self._live_request_ids: set[str] = set()

    def handler(self) -> grpc.GenericRpcHandler:
        """The service for a grpc.aio server.

        As if each call had a stream of requests: see reception.py. Without deserializers, since gRPC would answer
        undecodable bytes with UNKNOWN or INTERNAL, and without serializers, since Generate encodes by hand.
        """
        unary = {
            "Complete": self._unary("Complete", inference_pb2.GenerateRequest, self.complete),
            "Tokenize": self._unary("Tokenize", inference_pb2.TokenizeRequest, self.tokenize),
            "Detokenize": self._unary("Detokenize", inference_pb2.DetokenizeRequest, self.detokenize),
            "GetModel": self._unary("GetModel", inference_pb2.GetModelRequest, self.get_model),
        }
        methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            name: grpc.stream_unary_rpc_method_handler(method) for name, method in unary.items()
        }
        methods["Generate"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return ArrivalNote(grpc.method_handlers_generic_handler(SERVICE_NAME, methods))

    async def generate(self, message: inference_pb2.GenerateRequest, context: Context) -> None:
        """Writes Started, Deltas, and Finished for each sequence."""
        with self._reserve_id(message.request_id) as request_id, self._writer.open() as stream:
            request, output = await self._admission.admit(message, request_id, context, stream)
            with self._submit(request, output) as timer:
                started = inference_pb2.GenerateResponse(started=self._started(message, request))
                await context.write(started.SerializeToString())
                while not output.is_all_taken:
                    await stream.wait()
                    num_tokens = output.num_tokens
                    for response in output.take_messages():
                        await context.write(response)
                        timer.on_written(num_tokens)
                    if output.error is not None:
                        raise output.error

    async def complete(self, message: inference_pb2.GenerateRequest, context: Context) -> bytes:
        """The same, answered once with a serialized GenerateResult."""
        end = _End()
        with self._reserve_id(message.request_id) as request_id:
            request, output = await self._admission.admit(message, request_id, context, end)
            with self._submit(request, output) as timer:
                while not output.is_done:
                    await end.wait()
                timer.on_written(output.num_tokens)
            if output.error is not None:
                raise output.error
            return await self._result(self._started(message, request), output)

    async def tokenize(
        self, message: inference_pb2.TokenizeRequest, context: Context
    ) -> inference_pb2.TokenizeResponse:
        """Encodes as Generate would."""
        kind = message.WhichOneof("prompt")
        if kind is None:
            raise InvalidRequest([FieldViolation("prompt", "is missing; set text or chat")])
        if kind == "chat":
            prompt = await self._admission.prompts.encode_chat(message.chat)
        else:
            add_special_tokens = not message.HasField("add_special_tokens") or message.add_special_tokens
            prompt = await self._admission.prompts.encode_text(message.text, add_special_tokens=add_special_tokens)
        return inference_pb2.TokenizeResponse(token_ids=prompt.token_ids, text=prompt.text)

    async def detokenize(
        self, message: inference_pb2.DetokenizeRequest, context: Context
    ) -> inference_pb2.DetokenizeResponse:
        """Decodes a whole sequence of tokens, which is no longer than the context."""
        check_num_token_ids(len(message.token_ids), "token_ids", self._limits)
        token_ids = list(message.token_ids)
        violations = Violations()
        check_token_ids(token_ids, "token_ids", self._limits, violations)
        violations.raise_if_any()
        skip_special_tokens = not message.HasField("skip_special_tokens") or message.skip_special_tokens
        tokenizer = self._admission.prompts.tokenizer_for("token_ids")
        text = await tokenizer.run_on_thread(
            lambda ids: tokenizer.decode(ids, skip_special_tokens=skip_special_tokens),
            token_ids,
            num_chars=len(token_ids) * CHARS_PER_TOKEN,
        )
        return inference_pb2.DetokenizeResponse(text=text)

    async def get_model(self, message: inference_pb2.GetModelRequest, context: Context) -> inference_pb2.Model:
        """Describes the served model and its limits."""
        return inference_pb2.Model(
            name=self._model.model,
            digest=self._model.model_digest,
            architecture=self._model.architecture,
            max_model_len=self._model.max_model_len,
            vocab_size=self._model.vocab_size,
            dtype=self._model.dtype,
            supports_chat=self._tokenizer is not None and bool(self._tokenizer.chat_templates),
            eos_token_ids=self._model.eos_token_ids,
            max_n=self._limits.max_n,
            max_logprobs=self._limits.max_logprobs,
            max_queued_requests=self._config.max_queued_requests,
            max_queued_tokens=self._config.max_queued_tokens,
        )

    async def _result(self, started: inference_pb2.Started, output: RequestOutput) -> bytes:
        """Sequence by sequence, since many of them with log-probabilities take longer than others should wait."""
        parts = [inference_pb2.GenerateResult(started=started).SerializeToString()]
        for completion in output.take_completions():
            parts.append(inference_pb2.GenerateResult(completions=(completion,)).SerializeToString())
            if len(parts) % COMPLETIONS_PER_TURN == 0:
                await asyncio.sleep(0)
        return b"".join(parts)

    def _started(self, message: inference_pb2.GenerateRequest, request: Request) -> inference_pb2.Started:
        return inference_pb2.Started(
            request_id=request.request_id,
            model=self._model.model,
            model_digest=self._model.model_digest,
            seed=request.params.seed,
            num_prompt_tokens=len(request.prompt_token_ids),
            prompt_token_ids=request.prompt_token_ids if message.return_prompt_token_ids else (),
            prompt_text=request.prompt_text,
        )

    @contextmanager
    def _reserve_id(self, request_id: str) -> Iterator[str]:
        """The request's id, picked if it has none, for as long as it is alive. Raises RequestAlreadyExists."""
        check_request_id(request_id)
        request_id = request_id or uuid.uuid4().hex
        if request_id in self._live_request_ids:
            raise RequestAlreadyExists(f"a request with the id {request_id!r} is alive; choose another id")
        self._live_request_ids.add(request_id)
        try:
            yield request_id
        finally:
            self._live_request_ids.discard(request_id)

    @contextmanager
    def _submit(self, request: Request, output: RequestOutput) -> Iterator[RequestTimer]:
        """Gives the request to the engine; takes it back if its client goes away before it has ended."""
        self._engine.submit(request)
        timer = RequestTimer(self._metrics, request)
        try:
            yield timer
        finally:
            if not output.is_done:
                self._engine.abort(request)
            timer.on_end(output)

    async def _stream(self, _requests: object, context: Context) -> None:
        async def generate() -> None:
            message = await self._receive("Generate", inference_pb2.GenerateRequest, context)
            await self.generate(message, context)

        await self._answer("Generate", generate, context)

    def _unary(
        self, name: str, message_type: type[M], method: Callable[[M, Context], Awaitable[protobuf.Message | bytes]]
    ) -> Callable[[object, Context], Awaitable[bytes]]:
        async def call(_requests: object, context: Context) -> bytes:
            async def respond() -> bytes:
                answer = await method(await self._receive(name, message_type, context), context)
                return answer if isinstance(answer, bytes) else answer.SerializeToString()

            return await self._answer(name, respond, context)

        return call

    async def _receive(self, name: str, message_type: type[M], context: Context) -> M:
        data = await self._reception.read(name, context)
        return decode(message_type, data, self._config.max_receive_message_bytes or self._limits.max_message_bytes)

    async def _answer(self, name: str, call: Callable[[], Awaitable[T]], context: Context) -> T:
        """The top of every call: errors become statuses, and ends are counted."""
        try:
            answer = await call()
        except asyncio.CancelledError:
            self._metrics.num_calls[name, _why_cancelled(context)] += 1
            raise
        except grpc.aio.InternalError:
            # A write met the end of its call: the client has gone, or its deadline has passed.
            self._metrics.num_calls[name, _why_cancelled(context)] += 1
            raise asyncio.CancelledError from None
        except grpc.aio.AbortError:  # Reception has ended and counted the call.
            raise
        except RouterError as error:
            failure = error
        except (RecursionError, SyntaxError, UnicodeError) as error:
            # Of text or nesting that only the client can have sent.
            description = f"nested too deeply or no valid text ({type(error).__name__})"
            failure = InvalidRequest([FieldViolation("prompt", description)])
        except Exception:
            _log.exception("A call failed for a reason of ours")
            failure = RouterError("the router failed on this request; its log says more")
        else:
            self._metrics.num_calls[name, "OK"] += 1
            return answer
        self._metrics.num_calls[name, status_code(failure).name] += 1
        await abort(context, failure)


def _why_cancelled(context: Context) -> str:
    """The status of a call that gRPC has ended. The client's clock may be ahead: it starts when the call is sent."""
    remaining_s = context.time_remaining()
    return "CANCELLED" if remaining_s is None or remaining_s > DEADLINE_SLACK_S else "DEADLINE_EXCEEDED"


class _End:
    """Told of output like a stream, wakes only when a sequence has ended."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """New tokens wait for the end."""

    def notify_now(self) -> None:
        """A sequence has ended, or the request has failed."""
        self._event.set()

    async def wait(self) -> None:
        """Returns at the next end."""
        await self._event.wait()
        self._event.clear()
