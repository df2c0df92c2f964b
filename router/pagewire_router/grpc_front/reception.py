"""Reads the messages of calls: after the caller is known, and a bounded number at a time.

gRPC reads the message of a method with one request before it looks for who serves it. Methods are therefore registered
as if they took a stream of requests, of which one is read: on the wire the two are the same. Until it is read, a
message fills no more than its connection's small window; while it is read, it may grow to the largest size that is
accepted. The number of messages being read is bounded so that all of them together stay below MAX_RECEIVING_BYTES.
"""

import asyncio
import time
from typing import Any

import grpc

from pagewire_router.caller import Caller
from pagewire_router.errors import FieldViolation, InvalidRequest, QueueFull, RouterError, Unavailable
from pagewire_router.fair_slots import FairSlots
from pagewire_router.grpc_front.calls import Context, Count
from pagewire_router.grpc_front.rpc_status import abort

MAX_RECEIVING_BYTES = 256 << 20
MIN_MESSAGES = 4
"""Messages that may be read at a time, however large they are."""
MAX_WAITING = 4096
"""Most calls that may wait until their message is read."""
PATIENCE_S = 2.0
"""While other calls wait, a call whose message is not complete after this time is refused."""
LOOK_AGAIN_S = 0.5
RETRY_AFTER_S = 1.0
END_S = 0.05
"""Time within which gRPC cancels a call that has ended before its message was complete."""


class Reception:
    """Reads one message of each call."""

    def __init__(self, max_message_bytes: int, count: Count) -> None:
        """count: counts the calls that are refused here."""
        self._slots = FairSlots(max(MIN_MESSAGES, MAX_RECEIVING_BYTES // max_message_bytes))
        self._count = count
        self._reading: dict[Context, tuple[str, float]] = {}
        self._watching: asyncio.Task[None] | None = None

    async def read(self, method: str, context: Context, caller: Caller) -> bytes:
        """Reads the call's message.

        Raises QueueFull, InvalidRequest, Unavailable, and grpc.aio.AbortError if the call was refused meanwhile.
        """
        if not self._slots.take():
            await self._wait(caller)
        self._reading[context] = method, time.monotonic()
        try:
            message: Any = await context.read()
        finally:
            del self._reading[context]
            self._slots.release()
        if message is grpc.aio.EOF:
            # A call whose client has gone, or whose message is over gRPC's limit, ends like this too: gRPC cancels it.
            await asyncio.sleep(END_S)
            raise InvalidRequest([FieldViolation("message", "is missing; the call has none")])
        return bytes(message)

    async def close(self) -> None:
        """Tells the calls whose messages are still on their way that the router stops: nobody waits for them."""
        error = Unavailable("the router stops", retry_after_s=RETRY_AFTER_S)
        self._slots.fail_waiting(error)
        for context, (method, _) in list(self._reading.items()):
            await self._give_up(context, method, error)

    async def _wait(self, caller: Caller) -> None:
        if self._slots.num_waiting >= MAX_WAITING:
            raise QueueFull("too many messages wait to be received", retry_after_s=RETRY_AFTER_S)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="slow messages")
        await self._slots.wait(caller)

    async def _watch(self) -> None:
        """Refuses calls whose messages come too slowly, as long as other calls wait."""
        error = QueueFull("the message came too slowly while others waited", retry_after_s=RETRY_AFTER_S)
        while self._slots.num_waiting:
            await asyncio.sleep(LOOK_AGAIN_S)
            limit_s = time.monotonic() - PATIENCE_S
            slow = [(call, method) for call, (method, began_s) in self._reading.items() if began_s < limit_s]
            for context, method in slow[: self._slots.num_waiting]:
                await self._give_up(context, method, error)
        self._watching = None

    async def _give_up(self, context: Context, method: str, error: RouterError) -> None:
        """Refuses the call; read() then raises AbortError."""
        self._count(method, error)
        try:
            await abort(context, error)
        except (grpc.aio.AbortError, grpc.aio.BaseError, grpc.aio.UsageError):
            return
