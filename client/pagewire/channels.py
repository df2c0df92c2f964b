"""The connections of one client. Their number follows that of its open calls.

HTTP/2 is made for about a hundred concurrent streams on a connection. Calls go to the connection with the fewest open
ones; another is opened when all are well used.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import grpc.aio

from pagewire.errors import Cancelled
from pagewire.events import Event
from pagewire.proxies import channel_options
from pagewire.v1 import inference_pb2, inference_pb2_grpc
from pagewire.wire import decode_event

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # Without its own pool, channels to one address share one connection.
    ("grpc.use_local_subchannel_pool", 1),
    # Pings notice a hung peer only if ping_timeout_ms is set: keepalive_timeout_ms alone never fires.
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC's own retries are off: this package retries requests, since it reads RetryInfo.
    ("grpc.enable_retries", 0),
    # A server that was started again is found within about a second. gRPC spreads the attempts of many clients.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # The time that an attempt may take, whatever its name says: TLS to a far or busy server takes a while.
    ("grpc.min_reconnect_backoff_ms", 5_000),
)
STREAMS_PER_CHANNEL = 64
MAX_CHANNELS = 8


@dataclass(slots=True, eq=False)
class Connection:
    """One channel and the number of calls that are open on it."""

    address: str
    channel: grpc.aio.Channel
    inference: "inference_pb2_grpc.InferenceAsyncStub"
    generate: "grpc.aio.UnaryStreamMultiCallable[inference_pb2.GenerateRequest, Event | None]"
    """The stub's Generate, which decodes messages straight into events."""
    num_open: int = 0


class ChannelPool:
    """Opens channels to one target as they are needed. Belongs to the event loop that uses it first."""

    def __init__(
        self,
        target: str,
        credentials: grpc.ChannelCredentials | None,
        *,
        max_message_bytes: int,
        name: str | None = None,
    ) -> None:
        """name: what the server's certificate is made out to, if not to the target."""
        self._target = target
        self._credentials = credentials
        self._options: Sequence[tuple[str, int | str]] = (
            *CHANNEL_OPTIONS,
            *channel_options(target),
            *(() if name is None else (("grpc.default_authority", name),)),
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
        )
        self._connections: list[Connection] = []
        self._is_closed = False

    @property
    def num_open(self) -> int:
        """Calls that are open."""
        return sum(connection.num_open for connection in self._connections)

    @contextmanager
    def lease(self) -> Iterator[Connection]:
        """Lends a connection for the time of one call. Raises Cancelled once the pool is closed."""
        if self._is_closed:
            raise Cancelled("the client is closed")
        connection = min(self._connections, key=lambda c: c.num_open, default=None)
        if connection is None or (connection.num_open >= STREAMS_PER_CHANNEL and len(self._connections) < MAX_CHANNELS):
            connection = self._connect()
        connection.num_open += 1
        try:
            yield connection
        finally:
            connection.num_open -= 1

    def _connect(self) -> Connection:
        if self._credentials is None:
            channel = grpc.aio.insecure_channel(self._target, options=self._options)
        else:
            channel = grpc.aio.secure_channel(self._target, self._credentials, options=self._options)
        generate = channel.unary_stream(
            "/pagewire.v1.Inference/Generate",
            request_serializer=_serialize,
            response_deserializer=decode_event,
        )
        connection = Connection(self._target, channel, inference_pb2_grpc.InferenceStub(channel), generate)
        self._connections.append(connection)
        return connection

    async def close(self) -> None:
        """Closes all channels, which ends the calls that are open."""
        self._is_closed = True
        connections, self._connections = self._connections, []
        for connection in connections:
            await connection.channel.close()


def _serialize(request: inference_pb2.GenerateRequest) -> bytes:
    return request.SerializeToString()
