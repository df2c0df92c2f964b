"""One router's Execute call: the queue of messages to the router, and the end of the call."""

import asyncio
import time
from collections import deque
from typing import NoReturn, Protocol

import grpc
from pagewire.v1 import shard_pb2

from pagewire_shard.errors import PlanRefused, StreamError
from pagewire_shard.service.lease import EpochId

SNAPSHOT_CHUNK_HASHES = 64 * 1024


class RawContext(Protocol):
    """A stream-stream call of grpc.aio without serializers: messages are bytes."""

    async def read(self) -> object:
        """The next message, or grpc.aio.EOF."""

    async def write(self, message: bytes) -> None:
        """Sends a message; waits only when the peer does not read."""

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: tuple[tuple[str, bytes], ...] = ()
    ) -> NoReturn:
        """Ends the call."""


class PlanStream:
    """Serialized messages wait here until the call's own coroutine writes them.

    The step thread calls post() and fail(); everything else happens on the event loop. A writer that is fed by one
    deque costs one callback per message, whether or not the last write is through.
    """

    def __init__(self, router_id: str, epoch: EpochId) -> None:
        self.router_id = router_id
        self.epoch = epoch
        self._loop = asyncio.get_running_loop()
        self._outbox: deque[bytes] = deque()
        self._wakeup = asyncio.Event()
        self._closed = False
        self._num_plans = 0
        self._num_results = 0
        self._error: StreamError | None = None
        self._num_taken = 0
        self._seen = (0, 0.0)
        """_num_taken as unread_s() last saw it, and when it saw it first."""

    def unread_s(self) -> float:
        """For how long the oldest message has waited to be written, as far as calls of this method have seen it: the
        router does not read. To be called now and then."""
        now_s = time.monotonic()
        if not self._outbox or self._seen[0] != self._num_taken:
            self._seen = self._num_taken, now_s
        return now_s - self._seen[1]

    def take_plan(self, step: int, max_outstanding: int) -> None:
        """Counts a plan that has arrived. Raises PlanRefused if too many wait for their results already."""
        if self._num_plans - self._num_results >= max_outstanding:
            message = f"step {step} comes while {max_outstanding} plans are outstanding: more than max_inflight allows"
            raise PlanRefused(grpc.StatusCode.INVALID_ARGUMENT, message)
        self._num_plans += 1

    def post(self, message: bytes, *, is_result: bool) -> None:
        """Queues a message for the router. Called on the step thread."""
        # Before the message can reach the router, which answers it with a plan.
        self._num_results += is_result
        self._loop.call_soon_threadsafe(self.put, message)

    def fail(self, error: StreamError) -> None:
        """Ends the call, because the epoch has ended. Called on the step thread."""
        self._loop.call_soon_threadsafe(self.close, error)

    def put(self, message: bytes) -> None:
        """Queues a message; dropped once the stream is closed."""
        if not self._closed:
            self._outbox.append(message)
            self._wakeup.set()

    def put_if_idle(self, message: bytes) -> None:
        """Queues a message unless others wait, which say as much."""
        if not self._outbox:
            self.put(message)

    def close(self, error: StreamError | None = None) -> None:
        """Ends the call after what is queued: with the error's status, or with OK. The first close counts."""
        if not self._closed:
            self._closed = True
            self._error = error
            self._wakeup.set()

    def open_with(self, greeting: list[bytes]) -> None:
        """Queues the first messages of the call before any that the step thread may have posted already."""
        self._outbox.extendleft(reversed(greeting))

    async def write_to(self, context: RawContext) -> None:
        """Writes until the stream is closed and everything is written; then raises the error it was closed with."""
        while True:
            while self._outbox:
                self._num_taken += 1
                await context.write(self._outbox.popleft())
            if self._closed:
                break
            self._wakeup.clear()
            await self._wakeup.wait()
        if self._error is not None:
            raise self._error


def snapshot_messages(hashes: list[int]) -> list[bytes]:
    """The cache snapshot in messages of at most SNAPSHOT_CHUNK_HASHES; at least one, the last one marked."""
    starts = range(0, max(len(hashes), 1), SNAPSHOT_CHUNK_HASHES)
    chunks = [hashes[start : start + SNAPSHOT_CHUNK_HASHES] for start in starts]
    snapshots = [shard_pb2.CacheSnapshot(hashes=chunk) for chunk in chunks]
    snapshots[-1].last = True
    return [shard_pb2.ShardMessage(cache_snapshot=snapshot).SerializeToString() for snapshot in snapshots]
