"""Execute: the plan stream's protocol. Moves messages between routers and the step thread, and keeps the lease.

One call, in order: Hello -> lease granted -> the last holder's step ends -> Welcome, CacheSnapshot... -> plans down,
results and heartbeats up -> Goodbye, or the lease lapses, or it is taken, or the stream breaks -> sequences dropped.
Prepares and their answers go beside the plans: they pass the step thread by.
"""

import asyncio
import logging
import math
from collections import Counter

import grpc
from google.protobuf.message import DecodeError
from pagewire.v1 import shard_pb2
from pagewire_common.protocol import PROTOCOL_MAJOR

from pagewire_shard.errors import InvalidMessage, LeaseHeld, LeaseLost, ProtocolMismatch, ShardUnavailable, StreamError
from pagewire_shard.service.lease import EpochId, Lease
from pagewire_shard.service.plan_stream import PlanStream, RawContext, snapshot_messages
from pagewire_shard.service.preparations import Preparations
from pagewire_shard.service.rpc_status import abort
from pagewire_shard.stepping.step_commands import EpochStart
from pagewire_shard.stepping.step_thread import StepThread

logger = logging.getLogger(__name__)

MAX_INFLIGHT_LIMIT = 64
"""Plans that a router may have outstanding: some for each stage of a pipeline."""
STALL_CHECK_INTERVAL_S = 1.0
MIN_BEAT_S = 0.05
ABANDONED_TERMS = 3
"""A router that has not renewed its lease for so many terms is given up, also if no other wants to drive the shard."""
LATE_TIMER_S = 0.5
"""A lease timer this late says that the event loop stood still: renewals may lie unread, so it looks again."""


class ExecuteService:
    """Serves Execute to one router at a time."""

    def __init__(
        self,
        steps: StepThread,
        info: shard_pb2.ShardInfo,
        lease: Lease,
        preparations: Preparations,
        *,
        stall_timeout_s: float = math.inf,
    ) -> None:
        """stall_timeout_s: how long work may wait without progress before the shard counts as hung."""
        self._steps = steps
        self._info = info
        self._lease = lease
        self._preparations = preparations
        self._stall_timeout_s = stall_timeout_s
        self._grants_lease = info.tp_rank == 0 and info.pp_rank + 1 >= info.pp_size
        self._stream: PlanStream | None = None
        self._released = asyncio.Event()
        self._released.set()
        self._draining = False
        self._max_outstanding = 1
        self.num_failures: Counter[str] = Counter()
        """Calls that ended with an error, by its reason."""

    @property
    def is_draining(self) -> bool:
        """The shard was told to stop."""
        return self._draining

    def unread_s(self) -> float:
        """For how long the router has not read what is written to it; see PlanStream."""
        return 0.0 if self._stream is None else self._stream.unread_s()

    def describe_lease(self, info: shard_pb2.ShardInfo) -> None:
        """Fills in who drives the shard and who would."""
        info.lease_holder = self._lease.holder or ""
        info.waiting_routers.extend(self._lease.waiting)

    async def execute(self, _request_iterator: object, context: RawContext) -> None:
        """The call, with messages as bytes. Its end, whatever the reason, frees the lease."""
        try:
            hello = parse_hello(await context.read())
            stream = self._open(hello)
            try:
                await self._serve(stream, hello, context)
            finally:
                self._close(stream)
        except StreamError as error:
            self.num_failures[error.reason] += 1
            # Routers that stand by ask several times a second.
            level = logging.DEBUG if isinstance(error, LeaseHeld) else logging.INFO
            logger.log(level, "plan stream ends: %s", error.message)
            await abort(context, error)

    async def drain(self, grace_s: float) -> None:
        """Refuses new routers, tells the current one to move its sequences, waits until it lets go."""
        self._draining = True
        if self._stream is None:
            return
        draining = shard_pb2.Draining(grace_ms=int(grace_s * 1000))
        self._stream.put(shard_pb2.ShardMessage(draining=draining).SerializeToString())
        try:
            async with asyncio.timeout(grace_s):
                await self._released.wait()
        except TimeoutError:
            logger.warning("router %r did not let go within %g s", self._stream.router_id, grace_s)
            self._stream.close(ShardUnavailable("the shard stops"))

    def _open(self, hello: shard_pb2.Hello) -> PlanStream:
        if self._draining:
            raise ShardUnavailable("the shard drains")
        self._check_progress()
        if self._grants_lease:
            epoch = self._lease.grant(hello.router_id, force=hello.force, min_free_s=hello.min_free_ms / 1000)
        else:
            epoch = self._lease.obey(hello.router_id, EpochId(hello.epoch.incarnation, hello.epoch.counter))
        if self._stream is not None:
            self._stream.close(LeaseLost(f"the lease was taken by router {hello.router_id!r}"))
        self._stream = PlanStream(hello.router_id, epoch)
        self._released.clear()
        self._max_outstanding = hello.max_inflight
        logger.info("router %r leads, epoch %s", hello.router_id, epoch)
        return self._stream

    def _close(self, stream: PlanStream) -> None:
        stream.close()
        self._lease.release(stream.epoch)
        self._steps.end_epoch(stream)
        if self._stream is stream:
            self._stream = None
            self._released.set()

    async def _serve(self, stream: PlanStream, hello: shard_pb2.Hello, context: RawContext) -> None:
        epoch = stream.epoch.counter
        start = await asyncio.wrap_future(self._steps.begin_epoch(stream, hello.max_inflight, epoch))
        if stream is self._stream:
            self._lease.renew(stream.epoch)
        stream.open_with([self._welcome(stream, hello.max_inflight, start), *snapshot_messages(start.cached_hashes)])
        async with asyncio.TaskGroup() as group:
            helpers = [
                group.create_task(self._read(stream, context)),
                group.create_task(watch_lease(self._lease, stream)),
                group.create_task(self._watch_progress(stream)),
            ]
            if hello.beat_ms:
                helpers.append(group.create_task(_beat(stream, max(hello.beat_ms / 1000, MIN_BEAT_S))))
            try:
                await stream.write_to(context)
            except StreamError as error:
                stream_error: StreamError | None = error
            else:
                stream_error = None
            for helper in helpers:
                helper.cancel()
        if stream_error is not None:
            raise stream_error

    def _check_progress(self) -> None:
        """Raises ShardUnavailable if the step thread hangs: no epoch would begin, and no plan would run."""
        stalled_s = self._steps.stats.stalled_s()
        if stalled_s >= self._stall_timeout_s:
            raise ShardUnavailable(f"the shard hangs: its step thread has made no progress for {stalled_s:.0f} s")

    async def _watch_progress(self, stream: PlanStream) -> None:
        """Ends the stream when the step thread hangs: the router moves its requests as soon as it knows."""
        while True:
            await asyncio.sleep(min(STALL_CHECK_INTERVAL_S, self._stall_timeout_s / 4))
            try:
                self._check_progress()
            except ShardUnavailable as error:
                stream.close(error)

    def _welcome(self, stream: PlanStream, max_inflight: int, start: EpochStart) -> bytes:
        welcome = shard_pb2.Welcome(
            epoch=shard_pb2.Epoch(incarnation=stream.epoch.incarnation, counter=stream.epoch.counter),
            lease_term_ms=int(self._lease.term_s * 1000),
            max_inflight=max_inflight,
            info=self._info,
            free_blocks=start.free_blocks,
        )
        return shard_pb2.ShardMessage(welcome=welcome).SerializeToString()

    async def _read(self, stream: PlanStream, context: RawContext) -> None:
        try:
            while (data := await context.read()) is not grpc.aio.EOF:
                self._take(stream, data)
            # A cancelled call can look like this too, so it is never taken for a goodbye.
            stream.close(LeaseLost("the router's messages ended without Goodbye"))
        except StreamError as error:
            stream.close(error)

    def _take(self, stream: PlanStream, data: object) -> None:
        message = parse(data)
        match message.WhichOneof("message"):
            case "plan":
                self._take_plan(stream, message.plan)
            case "renew_lease":
                self._lease.renew(EpochId(message.renew_lease.epoch.incarnation, message.renew_lease.epoch.counter))
            case "prepare":
                self._preparations.prepare(stream, message.prepare)
            case "forget":
                self._preparations.forget(message.forget)
            case "goodbye":
                logger.info("router %r says goodbye: %s", stream.router_id, message.goodbye.reason)
                stream.close()
            case "hello":
                raise InvalidMessage("Hello comes once, first")
            case _:
                raise InvalidMessage("the message is of no kind this shard knows")

    def _take_plan(self, stream: PlanStream, plan: shard_pb2.StepPlan) -> None:
        self._lease.check(EpochId(plan.epoch.incarnation, plan.epoch.counter))
        stream.take_plan(plan.step, self._max_outstanding)
        self._steps.submit(stream, plan)


async def watch_lease(lease: Lease, stream: PlanStream) -> None:
    """Ends the stream when the lease has lapsed for so long that its router must be gone.

    Until then another router may take the lease, which ends the stream too. If none wants it, a router that stood still
    for a while goes on.
    """
    loop = asyncio.get_running_loop()
    patience_s = (ABANDONED_TERMS - 1) * lease.term_s
    while True:
        while (remaining_s := lease.remaining_s) > 0:
            await asyncio.sleep(remaining_s)
        due_s = loop.time() + patience_s
        await asyncio.sleep(patience_s)
        if loop.time() - due_s > LATE_TIMER_S:
            await asyncio.sleep(LATE_TIMER_S)
        if lease.remaining_s == 0:
            break
    stream.close(LeaseLost(f"the lease lapsed: not renewed for {ABANDONED_TERMS * lease.term_s:g} s"))


async def _beat(stream: PlanStream, interval_s: float) -> None:
    """Says again and again that the process runs."""
    message = shard_pb2.ShardMessage(beat=shard_pb2.Beat()).SerializeToString()
    while True:
        await asyncio.sleep(interval_s)
        stream.put_if_idle(message)


def parse(data: object) -> shard_pb2.RouterMessage:
    """Raises InvalidMessage."""
    assert isinstance(data, bytes)
    try:
        return shard_pb2.RouterMessage.FromString(data)
    except DecodeError as error:
        raise InvalidMessage("the bytes are no pagewire.v1.RouterMessage") from error


def parse_hello(data: object) -> shard_pb2.Hello:
    """The first message of a call, checked. Raises InvalidMessage and ProtocolMismatch."""
    if data is grpc.aio.EOF:
        raise InvalidMessage("the stream ended before Hello")
    message = parse(data)
    if message.WhichOneof("message") != "hello":
        raise InvalidMessage("the first message must be Hello")
    hello = message.hello
    if hello.protocol_major != PROTOCOL_MAJOR:
        raise ProtocolMismatch(f"the router speaks protocol {hello.protocol_major}, this shard {PROTOCOL_MAJOR}")
    if not 1 <= hello.max_inflight <= MAX_INFLIGHT_LIMIT:
        raise InvalidMessage(f"Hello.max_inflight is {hello.max_inflight}, accepted are 1 to {MAX_INFLIGHT_LIMIT}")
    return hello
