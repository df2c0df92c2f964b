"""The public gRPC service: decodes what calls bring, asks Inference, and encodes what it answers."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
from google.protobuf import message as protobuf
from pagewire.v1 import inference_pb2

from pagewire_router.admission.call import Call
from pagewire_router.config import MAX_MESSAGE_BYTES, RouterConfig
from pagewire_router.errors import Aborted, RouterError, status_code
from pagewire_router.grpc_front.calls import Context, new_call
from pagewire_router.grpc_front.message_decoder import decode
from pagewire_router.grpc_front.message_writer import MessageWriter
from pagewire_router.grpc_front.reception import Reception
from pagewire_router.grpc_front.rpc_status import end_with
from pagewire_router.inference import Inference, failure_of
from pagewire_router.metrics.request_metrics import Metrics
from pagewire_router.output.stepwise_writer import NotRead

SERVICE_NAME = "pagewire.v1.Inference"
COMPLETIONS_PER_TURN = 4
"""Sequences of one answer that are encoded in one turn of the event loop."""
DEADLINE_SLACK_S = 0.1
"""A call that is cancelled so shortly before its deadline was ended by it."""

M = TypeVar("M", bound=protobuf.Message)
T = TypeVar("T")


class InferenceService:
    """The Inference service for a grpc.aio server. Requests and answers pass as bytes; see handler()."""

    def __init__(self, config: RouterConfig, inference: Inference, metrics: Metrics) -> None:
        self._inference = inference
        self._metrics = metrics
        self._is_tracing = bool(config.trace_exporters)
        self._max_message_bytes = config.max_receive_message_bytes or inference.limits.max_message_bytes
        self._reception = Reception(config.max_receive_message_bytes or MAX_MESSAGE_BYTES, metrics.count_refused)

    def handler(self) -> grpc.GenericRpcHandler:
        """The service for a grpc.aio server.

        Methods are registered as if each call had a stream of requests: see reception.py. They have no deserializers,
        since gRPC would answer undecodable bytes with UNKNOWN or INTERNAL, and no serializers, since the messages of
        Generate are encoded by hand.
        """
        unary = {
            "Complete": self._unary("Complete", inference_pb2.GenerateRequest, self._complete),
            "Tokenize": self._unary("Tokenize", inference_pb2.TokenizeRequest, self._tokenize),
            "Detokenize": self._unary("Detokenize", inference_pb2.DetokenizeRequest, self._detokenize),
            "GetModel": self._unary("GetModel", inference_pb2.GetModelRequest, self._get_model),
        }
        methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            name: grpc.stream_unary_rpc_method_handler(method) for name, method in unary.items()
        }
        methods["Generate"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    async def close(self) -> None:
        """Ends the calls whose messages are still on their way."""
        await self._reception.close()

    async def _generate(self, message: inference_pb2.GenerateRequest, call: Call, context: Context) -> None:
        """Writes Started, PromptLogprobs if asked for, Deltas, and Finished for each sequence."""
        writer = MessageWriter(context)
        try:
            async with self._inference.generate(message, call) as stream:
                writer.write_bytes((inference_pb2.GenerateResponse(started=stream.started).SerializeToString(),))
                await stream.write_to(writer)
        finally:
            writer.close()

    async def _complete(self, message: inference_pb2.GenerateRequest, call: Call) -> bytes:
        """A serialized GenerateResult.

        It is encoded part by part, since many sequences with log-probabilities, or a long prompt with them, take longer
        than other calls should wait.
        """
        completed = await self._inference.complete(message, call)
        parts = [inference_pb2.GenerateResult(started=completed.started).SerializeToString()]
        for part in completed.prompt_logprobs:
            parts.append(inference_pb2.GenerateResult(prompt_logprobs=part.logprobs).SerializeToString())
            await asyncio.sleep(0)
        for completion in completed.completions:
            parts.append(inference_pb2.GenerateResult(completions=(completion,)).SerializeToString())
            if len(parts) % COMPLETIONS_PER_TURN == 0:
                await asyncio.sleep(0)
        return b"".join(parts)

    async def _tokenize(self, message: inference_pb2.TokenizeRequest, call: Call) -> bytes:
        return (await self._inference.tokenize(message, call)).SerializeToString()

    async def _detokenize(self, message: inference_pb2.DetokenizeRequest, call: Call) -> bytes:
        return (await self._inference.detokenize(message, call)).SerializeToString()

    async def _get_model(self, message: inference_pb2.GetModelRequest, call: Call) -> bytes:
        return self._inference.get_model().SerializeToString()

    async def _stream(self, _requests: object, context: Context) -> None:
        async def generate() -> None:
            message, call = await self._receive("Generate", inference_pb2.GenerateRequest, context)
            await self._generate(message, call, context)

        await self._answer("Generate", generate, context)

    def _unary(
        self, name: str, message_type: type[M], method: Callable[[M, Call], Awaitable[bytes]]
    ) -> Callable[[object, Context], Awaitable[bytes | None]]:
        async def call(_requests: object, context: Context) -> bytes | None:
            async def respond() -> bytes:
                return await method(*await self._receive(name, message_type, context))

            return await self._answer(name, respond, context)

        return call

    async def _receive(self, name: str, message_type: type[M], context: Context) -> tuple[M, Call]:
        call = new_call(context, is_tracing=self._is_tracing)
        data = await self._reception.read(name, context, call.caller)
        return decode(message_type, data, self._max_message_bytes), call

    async def _answer(self, name: str, call: Callable[[], Awaitable[T]], context: Context) -> T | None:
        """The outermost part of every call: turns errors into statuses, and counts how calls end.

        Returns None where the call has ended already.
        """
        try:
            answer = await call()
        except asyncio.CancelledError:
            self._metrics.num_calls[name, _why_cancelled(context)] += 1
            raise
        except grpc.aio.InternalError:
            # A write met the end of its call: the client has gone, or its deadline has passed.
            self._metrics.num_calls[name, _why_cancelled(context)] += 1
            raise asyncio.CancelledError from None
        except NotRead:
            # The status waits behind what gRPC has taken already; all else that waited is gone.
            failure: RouterError = Aborted("the client has read nothing of its stream for too long")
        except grpc.aio.AbortError:  # Reception has ended and counted the call.
            raise
        except Exception as error:
            failure = failure_of(error)
        else:
            self._metrics.num_calls[name, "OK"] += 1
            return answer
        self._metrics.num_calls[name, status_code(failure).name] += 1
        await end_with(context, failure)
        return None


def _why_cancelled(context: Context) -> str:
    """The status of a call that gRPC has ended. The client's clock may be ahead: it starts when the call is sent."""
    remaining_s = context.time_remaining()
    return "CANCELLED" if remaining_s is None or remaining_s > DEADLINE_SLACK_S else "DEADLINE_EXCEEDED"
