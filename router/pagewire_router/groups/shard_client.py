"""The client of one shard: its channel, its description, its files, and the plan stream."""

import asyncio
import contextlib
import hashlib
from dataclasses import dataclass

import grpc
from google.rpc import error_details_pb2, status_pb2
from pagewire.v1 import shard_pb2, shard_pb2_grpc
from pagewire_common.protobuf_bytes import length_delimited
from pagewire_common.protocol import MAX_SHARD_MESSAGE_BYTES, PROTOCOL_MAJOR, PROTOCOL_MINOR
from pagewire_common.rpc_status import DETAILS_KEY
from pagewire_common.tls import TlsFiles

from pagewire_router.errors import Unavailable
from pagewire_router.groups.silence_watch import BEAT_S

FILES_TIMEOUT_S = 60.0
GOODBYE_TIMEOUT_S = 1.0

CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    # Without ping_timeout_ms a peer that hangs is noticed after a minute, whatever the keepalive says.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
    # Shards are next to their router; a proxy for the outside world cannot reach them.
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    # A shard that was started again is found soon: its requests wait.
    ("grpc.max_reconnect_backoff_ms", 300),
    ("grpc.max_receive_message_length", MAX_SHARD_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_SHARD_MESSAGE_BYTES),
)

CALL_ERRORS = (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError)
"""Exceptions of grpc.aio when a call has ended or its channel is closed, depending on who notices it first."""

RawMultiCallable = grpc.aio.StreamStreamMultiCallable[bytes, bytes]
RawCall = grpc.aio.StreamStreamCall[bytes, bytes]


_ROUTER_MESSAGE_PLAN = b"\x12"


def encode_plan(plan: shard_pb2.StepPlan) -> bytes:
    """RouterMessage(plan=plan), serialized without copying the plan."""
    return length_delimited(_ROUTER_MESSAGE_PLAN, plan.SerializeToString())


@dataclass(frozen=True, slots=True)
class PlanStreamOpened:
    """A granted lease."""

    call: RawCall
    welcome: shard_pb2.Welcome


class LeaseHeld(Unavailable):
    """Another router drives the shard, or is given the time to: then the holder is empty."""

    def __init__(self, message: str, holder: str) -> None:
        super().__init__(message)
        self.holder = holder


class ShardClient:
    """A channel to one shard. Its methods raise CALL_ERRORS and Unavailable, after which the group loop tries again."""

    def __init__(
        self,
        address: str,
        *,
        name: str | None = None,
        credentials: TlsFiles[grpc.ChannelCredentials] | None = None,
    ) -> None:
        """name: what the shard's certificate is made out to, if not to the address; credentials: for TLS."""
        self.address = address
        self._options = CHANNEL_OPTIONS if name is None else (*CHANNEL_OPTIONS, ("grpc.default_authority", name))
        self._credentials = credentials
        self._used = None if credentials is None else credentials.latest()
        self._plan_stream: RawCall | None = None
        self._channel = self._new_channel()
        self._stub = shard_pb2_grpc.ShardStub(self._channel)

    def _new_channel(self) -> grpc.aio.Channel:
        if self._used is None:
            return grpc.aio.insecure_channel(self.address, options=self._options)
        return grpc.aio.secure_channel(self.address, self._used, options=self._options)

    async def _renew(self) -> None:
        """Replaces the channel if its certificates have been renewed, unless a plan stream is open on it."""
        if self._credentials is None or (self._plan_stream is not None and not self._plan_stream.done()):
            return
        latest = self._credentials.latest()
        if latest is not self._used:
            self._used, old = latest, self._channel
            self._channel = self._new_channel()
            self._stub = shard_pb2_grpc.ShardStub(self._channel)
            await old.close()

    async def get_info(self, timeout_s: float) -> shard_pb2.ShardInfo:
        """Asks for the shard's description."""
        await self._renew()
        return await self._stub.GetInfo(shard_pb2.GetInfoRequest(), timeout=timeout_s)

    async def get_model_files(self) -> dict[str, bytes]:
        """Fetches tokenizer and configuration files, by name. Raises Unavailable if one arrives damaged."""
        files: dict[str, bytes] = {}
        async for chunk in self._stub.GetModelFiles(shard_pb2.GetModelFilesRequest(), timeout=FILES_TIMEOUT_S):
            files[chunk.name] = files.get(chunk.name, b"") + chunk.data
            if chunk.sha256 and hashlib.sha256(files[chunk.name]).digest() != chunk.sha256:
                raise Unavailable(f"{chunk.name} from shard {self.address} does not match its checksum")
        return files

    async def open_plan_stream(
        self, router_id: str, max_inflight: int, epoch: shard_pb2.Epoch | None, min_free_s: float = 0.0
    ) -> PlanStreamOpened:
        """Asks for the lease. `epoch`: what rank 0 granted, for the other ranks of the group; min_free_s: how long the
        lease must have been free.

        Raises LeaseHeld if another router drives the shard, Unavailable for any other refusal.
        """
        await self._renew()
        # Plans are serialized once for all ranks of a group, so the call takes bytes.
        execute: RawMultiCallable = self._channel.stream_stream("/pagewire.v1.Shard/Execute")
        call: RawCall = execute()
        self._plan_stream = call
        hello = shard_pb2.Hello(
            router_id=router_id,
            protocol_major=PROTOCOL_MAJOR,
            protocol_minor=PROTOCOL_MINOR,
            max_inflight=max_inflight,
            epoch=epoch,
            min_free_ms=int(min_free_s * 1000),
            beat_ms=int(BEAT_S * 1000),
        )
        try:
            return PlanStreamOpened(call, await self._welcome(call, hello))
        except BaseException:
            call.cancel()  # Otherwise the shard would hold the lease for a call that nobody reads.
            raise

    async def _welcome(self, call: RawCall, hello: shard_pb2.Hello) -> shard_pb2.Welcome:
        try:
            await call.write(shard_pb2.RouterMessage(hello=hello).SerializeToString())
            data = await call.read()
        except CALL_ERRORS:
            raise await self._refusal(call) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise Unavailable(f"the channel to shard {self.address} was closed") from None
        message = shard_pb2.ShardMessage.FromString(data) if isinstance(data, bytes) else shard_pb2.ShardMessage()
        if message.WhichOneof("message") != "welcome":
            raise await self._refusal(call)
        return message.welcome

    async def _refusal(self, call: RawCall) -> Unavailable:
        """The reason why a shard has not granted the lease. Awaiting a status raises nothing."""
        message = f"shard {self.address} refuses: {await call.details()}"
        trailers = dict(await call.trailing_metadata() or ())
        packed = trailers.get(DETAILS_KEY, b"")
        status = status_pb2.Status.FromString(packed if isinstance(packed, bytes) else b"")
        for detail in status.details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info) and info.reason == "LEASE_HELD":
                return LeaseHeld(message, info.metadata["holder"])
        return Unavailable(message)

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()


async def write_all(calls: list[RawCall], message: bytes) -> None:
    """Writes a message to every rank. Raises CALL_ERRORS, or Unavailable with the reason if the call has ended."""
    for call in calls:
        try:
            await call.write(message)
        except asyncio.InvalidStateError:
            raise Unavailable(f"the plan stream ended: {await call.details()}") from None


async def say_goodbye(calls: list[RawCall], reason: str) -> None:
    """Ends plan streams gracefully, as far as their shards still listen."""
    goodbye = shard_pb2.RouterMessage(goodbye=shard_pb2.Goodbye(reason=reason)).SerializeToString()
    with contextlib.suppress(*CALL_ERRORS, Unavailable, TimeoutError):
        async with asyncio.timeout(GOODBYE_TIMEOUT_S):
            await write_all(calls, goodbye)
            for call in calls:
                await call.done_writing()


def geometry(info: shard_pb2.ShardInfo) -> shard_pb2.ShardInfo:
    """The sizes that a group's accounts depend on. A shard that comes back with others is another shard."""
    return shard_pb2.ShardInfo(
        group_id=info.group_id,
        tp_size=info.tp_size,
        pp_size=info.pp_size,
        model_digest=info.model_digest,
        block_size=info.block_size,
        num_blocks=info.num_blocks,
        cache_groups=info.cache_groups,
        max_num_seqs=info.max_num_seqs,
        max_num_batched_tokens=info.max_num_batched_tokens,
        max_model_len=info.max_model_len,
        longest_short=info.longest_short,
    )


def describe(error: BaseException) -> str:
    """One line for the log."""
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__
