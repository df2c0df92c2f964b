"""A real gRPC server whose answers the tests script."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import grpc.aio
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from pagewire import event_loop
from pagewire.v1 import inference_pb2 as pb
from pagewire.v1 import inference_pb2_grpc


def packed(message) -> any_pb2.Any:
    result = any_pb2.Any()
    result.Pack(message)
    return result


async def refuse(
    context, code: str, message: str, *, reason="", retry_after_s=None, violations=(), metadata=None
) -> None:
    """Ends a call as the router does: a status with google.rpc details."""
    details = []
    if reason:
        details.append(packed(error_details_pb2.ErrorInfo(reason=reason, domain="pagewire", metadata=metadata)))
    if retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(retry_after_s * 1e9))
        details.append(packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    if violations:
        fields = [error_details_pb2.BadRequest.FieldViolation(field=f, description=d) for f, d in violations]
        details.append(packed(error_details_pb2.BadRequest(field_violations=fields)))
    status = status_pb2.Status(code=code_pb2.Code.Value(code), message=message, details=details)
    await context.abort_with_status(rpc_status.to_status(status))


def words_of(request: pb.GenerateRequest) -> list[str]:
    return request.text.split() or [str(token_id) for token_id in request.token_ids.ids]


def started(request: pb.GenerateRequest) -> pb.GenerateResponse:
    ids = range(len(words_of(request))) if request.return_prompt_token_ids else ()
    return pb.GenerateResponse(
        started=pb.Started(
            request_id=request.request_id or "picked",
            model="fake",
            seed=7,
            num_prompt_tokens=len(words_of(request)),
            prompt_token_ids=ids,
        )
    )


def finished(num_tokens: int) -> pb.Finished:
    usage = pb.Usage(prompt_tokens=3, completion_tokens=num_tokens, cached_tokens=1)
    return pb.Finished(finish_reason=pb.FINISH_REASON_STOP, stop_string="!", usage=usage)


class FakeInference(inference_pb2_grpc.InferenceServicer):
    """Answers with the prompt's words, one for each token, unless a test replaces `generate` or `complete`."""

    def __init__(self) -> None:
        self.requests: list[pb.GenerateRequest] = []
        self.contexts: list[grpc.aio.ServicerContext] = []
        self.model = pb.Model(name="fake", supports_chat=True, max_queued_requests=64)
        self.refuse = refuse
        self.generate: Callable[..., AsyncIterator[pb.GenerateResponse]] = self.say_words
        self.complete: Callable[..., Awaitable[pb.GenerateResult]] = self.all_words

    async def say_words(self, request, context) -> AsyncIterator[pb.GenerateResponse]:
        yield started(request)
        words = words_of(request)
        for index, word in enumerate(words):
            yield pb.GenerateResponse(delta=pb.Delta(text=f" {word}", token_ids=[index]))
        yield pb.GenerateResponse(finished=finished(len(words)))

    async def all_words(self, request, context) -> pb.GenerateResult:
        words = words_of(request)
        completion = pb.Completion(
            text="".join(f" {word}" for word in words), token_ids=range(len(words)), finished=finished(len(words))
        )
        return pb.GenerateResult(started=started(request).started, completions=[completion])

    async def Generate(self, request, context):  # noqa: N802
        self.requests.append(request)
        self.contexts.append(context)
        async for response in self.generate(request, context):
            yield response

    async def Complete(self, request, context):  # noqa: N802
        self.requests.append(request)
        self.contexts.append(context)
        return await self.complete(request, context)

    async def Tokenize(self, request, context):  # noqa: N802
        text = request.text or " ".join(message.content for message in request.chat.messages)
        return pb.TokenizeResponse(token_ids=range(len(text.split())), text=text)

    async def Detokenize(self, request, context):  # noqa: N802
        return pb.DetokenizeResponse(text=" ".join(map(str, request.token_ids)))

    async def GetModel(self, request, context):  # noqa: N802
        return self.model


async def start_server(fake: FakeInference, address: str) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServicer_to_server(fake, server)
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    port = server.add_insecure_port(address)
    await server.start()
    return server, port


@pytest.fixture
async def fake():
    """A fake server on the test's own event loop, at `fake.target`."""
    servicer = FakeInference()
    server, port = await start_server(servicer, "127.0.0.1:0")
    servicer.target = f"127.0.0.1:{port}"
    yield servicer
    await server.stop(0)


@pytest.fixture
def background_fake():
    """A fake server on the event loop that synchronous clients use, so that tests can block."""
    loop = event_loop.background_loop()
    servicer = FakeInference()

    async def start() -> tuple[grpc.aio.Server, int]:
        return await start_server(servicer, "127.0.0.1:0")

    server, port = loop.run(start())
    servicer.target = f"127.0.0.1:{port}"
    yield servicer
    loop.run(server.stop(0))


@pytest.fixture
def eventually():
    """Waits until a condition holds."""

    async def wait(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.005)

    return wait
