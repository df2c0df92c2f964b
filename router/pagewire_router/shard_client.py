"""One shard as the router sees it: its channel, its description, its files, and the plan stream."""

import hashlib
from dataclasses import dataclass

import grpc
from pagewire.v1 import shard_pb2, shard_pb2_grpc

from pagewire_router.errors import Unavailable

PROTOCOL_MAJOR, PROTOCOL_MINOR = 1, 0

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # Without ping_timeout_ms a peer that hangs is noticed after a minute, whatever the keepalive says.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", 256 * 1024 * 1024),
    ("grpc.max_send_message_length", 256 * 1024 * 1024),
)

RawMultiCallable = grpc.aio.StreamStreamMultiCallable[bytes, bytes]
RawCall = grpc.aio.StreamStreamCall[bytes, bytes]


@dataclass(frozen=True, slots=True)
class PlanStreamOpened:
    """A granted lease."""

    call: RawCall
    welcome: shard_pb2.Welcome


class ShardClient:
    """A channel to one shard. Errors are grpc.RpcError; the group loop turns them into a new attempt."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = shard_pb2_grpc.ShardStub(self._channel)
        # Plans are serialized once for all ranks of a group, so the call takes bytes.
        execute: RawMultiCallable = self._channel.stream_stream("/pagewire.v1.Shard/Execute")
        self._execute = execute

    async def get_info(self, timeout_s: float) -> shard_pb2.ShardInfo:
        """The shard's description; waits for the connection."""
        return await self._stub.GetInfo(shard_pb2.GetInfoRequest(), timeout=timeout_s, wait_for_ready=True)

    async def get_model_files(self) -> dict[str, bytes]:
        """The tokenizer and configuration files by name. Raises Unavailable if one arrives damaged."""
        files: dict[str, bytes] = {}
        async for chunk in self._stub.GetModelFiles(shard_pb2.GetModelFilesRequest()):
            files[chunk.name] = files.get(chunk.name, b"") + chunk.data
            if chunk.sha256 and hashlib.sha256(files[chunk.name]).digest() != chunk.sha256:
                raise Unavailable(f"{chunk.name} from shard {self.address} does not match its checksum")
        return files

    async def open_plan_stream(
        self, router_id: str, max_inflight: int, epoch: shard_pb2.Epoch | None
    ) -> PlanStreamOpened:
        """Asks for the lease. `epoch`: what rank 0 granted, for the other ranks of the group."""
        call: RawCall = self._execute()
        hello = shard_pb2.Hello(
            router_id=router_id,
            protocol_major=PROTOCOL_MAJOR,
            protocol_minor=PROTOCOL_MINOR,
            max_inflight=max_inflight,
            epoch=epoch,
        )
        await call.write(shard_pb2.RouterMessage(hello=hello).SerializeToString())
        data = await call.read()
        message = shard_pb2.ShardMessage.FromString(data) if isinstance(data, bytes) else shard_pb2.ShardMessage()
        if message.WhichOneof("message") != "welcome":
            # The status says why; awaiting it raises nothing, so raise what it says.
            raise Unavailable(f"shard {self.address} refuses: {await call.details()}")
        return PlanStreamOpened(call, message.welcome)

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()
