"""Sends requests over pagewire's own API."""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import grpc.aio

from pagewire.async_client import MAX_MESSAGE_BYTES, bearer
from pagewire.bench.metrics import RequestOutcome
from pagewire.bench.sending import Recording
from pagewire.bench.workloads import Prompt
from pagewire.channels import ChannelPool, Connection
from pagewire.errors import InvalidRequest
from pagewire.prompts import TokensPrompt
from pagewire.sampling_params import SamplingParams
from pagewire.tls import channel_credentials
from pagewire.v1 import inference_pb2
from pagewire.wire import RequestOptions, build_request

GENERATE = "/pagewire.v1.Inference/Generate"


def serialize(prompt: Prompt, sampling: SamplingParams) -> bytes:
    """Serializes one request ahead of the run.

    Args:
        sampling: sampling parameters, of which max_tokens is replaced by the prompt's.
    """
    content: str | TokensPrompt = (
        prompt.content if isinstance(prompt.content, str) else {"prompt_token_ids": prompt.content}
    )
    params = sampling.clone()
    params.max_tokens = prompt.max_tokens
    return build_request(content, params, RequestOptions()).SerializeToString()


@dataclass(frozen=True, slots=True)
class GrpcTarget:
    """A server of pagewire's own API."""

    address: str
    sampling: SamplingParams = field(default_factory=SamplingParams)
    tls: bool = False
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    api_key: str | None = None
    timeout_s: float | None = None
    """Timeout of each request; None: no limit."""

    def connect(self) -> "GrpcSender":
        """See Target."""
        credentials = channel_credentials(tls=self.tls, ca=self.tls_ca, cert=self.tls_cert, key=self.tls_key)
        return GrpcSender(ChannelPool(self.address, credentials, max_message_bytes=MAX_MESSAGE_BYTES), self)


class GrpcSender:
    """See Sender."""

    def __init__(self, channels: ChannelPool, target: GrpcTarget) -> None:
        self._channels = channels
        self._target = target
        self._metadata = bearer(target.api_key)

    def serialize(self, content: Any, max_tokens: int) -> bytes:
        """See Sender."""
        return serialize(Prompt(content, max_tokens), self._target.sampling)

    async def send(self, request: bytes, recording: Recording) -> None:
        """See Sender."""
        with self._channels.lease() as connection:
            call = _generate(connection)(request, metadata=self._metadata, timeout=self._target.timeout_s)
            await _record(call, recording)

    def outcome(self, recording: Recording, origin_s: float) -> RequestOutcome:
        """See Sender."""
        times_s: list[float] = []
        num_tokens: list[int] = []
        texts: list[str] = []
        num_prompt_tokens = num_cached_tokens = 0
        for time_s, response in zip(recording.times_s, _responses(recording), strict=True):
            match response.WhichOneof("event"):
                case "started":
                    num_prompt_tokens = response.started.num_prompt_tokens
                case "delta":
                    texts.append(response.delta.text)
                    if response.delta.token_ids:
                        times_s.append(time_s - origin_s)
                        num_tokens.append(len(response.delta.token_ids))
                case "finished":
                    num_cached_tokens = response.finished.usage.cached_tokens
        return RequestOutcome(
            start_s=recording.start_s - origin_s,
            end_s=recording.end_s - origin_s,
            num_prompt_tokens=num_prompt_tokens,
            num_cached_tokens=num_cached_tokens,
            message_times_s=tuple(times_s),
            message_tokens=tuple(num_tokens),
            text="".join(texts),
            error=recording.error,
        )

    def continued(self, content: Any, recording: Recording, added: str | list[int]) -> Any:
        """See Sender."""
        if isinstance(content, str) or isinstance(added, str):
            raise InvalidRequest("a conversation continues with token ids")
        output = [token_id for response in _responses(recording) for token_id in response.delta.token_ids]
        return [*content, *output, *added]

    async def close(self) -> None:
        """See Sender."""
        await self._channels.close()


def _responses(recording: Recording) -> list[inference_pb2.GenerateResponse]:
    return [inference_pb2.GenerateResponse.FromString(payload) for payload in recording.payloads]


def _generate(connection: Connection) -> "grpc.aio.UnaryStreamMultiCallable[bytes, bytes]":
    """Returns the method Inference/Generate without serialization: from bytes to bytes."""
    return connection.channel.unary_stream(GENERATE, request_serializer=None, response_deserializer=None)


async def _record(call: "grpc.aio.UnaryStreamCall[bytes, bytes]", recording: Recording) -> None:
    add_time: Callable[[float], None] = recording.times_s.append
    add_payload: Callable[[Any], None] = recording.payloads.append
    try:
        # read() costs less per message than iteration.
        while (payload := await call.read()) is not grpc.aio.EOF:
            add_time(perf_counter())
            add_payload(payload)
    except grpc.aio.AioRpcError as error:
        recording.error = f"{error.code().name}: {error.details()}"
