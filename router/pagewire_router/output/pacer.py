"""Decides when each stream is written: at once at low load, at most once per floor under load.

A message costs the event loop about the same whether it carries one token or ten, so what is limited is messages. With
`num_streaming` streams, each written at most once per floor, no more than num_streaming / floor messages go out per
second. The floor that holds this to what the loop has time for (write_budget.py) is num_streaming / writes_per_s: below
the time of a step while streams are few, so that every token goes out at once, and growing with them up to max_floor_s.

One timer and one queue serve all streams. At most WRITES_PER_TURN streams are written in one turn of the event loop, so
that plans and results never wait behind the writes of a whole batch. gRPC hands over new calls one by one, each two or
three turns after the last: while calls come, turns are kept short, or a thousand calls would take seconds to arrive.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, Self

from pagewire_router.output.write_budget import WriteBudget

WRITES_PER_TURN = 8
"""They take 0.2 to 0.5 ms. A result waits for about three turns until the next plan is out."""
WRITES_PER_SHORT_TURN = 2
ARRIVAL_S = 0.005
"""Turns are short for so long after a call has come."""
TIMER_SLACK_S = 0.001
"""Streams due within this time share a turn of the loop, which costs more than a write."""


class EventLoop(Protocol):
    """The methods of asyncio's event loop that the pacer uses."""

    def time(self) -> float:
        """Seconds, monotonic."""

    def call_soon(self, callback: Callable[[], Any], /) -> Any:
        """Calls back in the next turn."""

    def call_at(self, when: float, callback: Callable[[], Any], /) -> Any:
        """Calls back at a time; the result has cancel()."""


class PacedStream:
    """One stream. The request's output notifies it, and whoever writes it is called back when the output is due."""

    __slots__ = ("_callback", "_due_s", "_is_due", "_is_queued", "_last_write_s", "_pacer")

    def __init__(self, pacer: "Pacer") -> None:
        self._pacer = pacer
        self._callback: Callable[[], bool] | None = None
        self._is_queued = False
        self._is_due = False
        """There is output that is due, and nobody to call back yet."""
        self._due_s = 0.0
        self._last_write_s: float | None = None

    def notify(self) -> None:
        """There are new tokens; they are due when the stream's floor has passed."""
        if not self._is_queued:
            self._is_queued = True
            self._pacer._enqueue(self)

    def notify_now(self) -> None:
        """There is output that must not wait: a sequence has ended, or the request has failed."""
        if not self._is_queued or self._due_s > 0:
            self._is_queued = True
            self._pacer._enqueue_now(self)

    def call_when_due(self, callback: Callable[[], bool]) -> None:
        """Calls back whenever there is output and it is due. What is taken then counts as one write.

        The callback returns whether it has begun a write, and raises nothing.
        """
        self._callback = callback
        if self._is_due:
            self._call()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """The stream has ended, whether all its output was written or not."""
        if self._last_write_s is not None:
            self._pacer.num_streaming -= 1
            self._last_write_s = None
        self._is_queued, self._due_s, self._callback = True, 0.0, None

    def _call(self) -> bool:
        if self._callback is None:
            self._is_due = True
            return False
        self._is_due = self._is_queued = False
        return self._callback()


class Pacer:
    """The queue of the streams that have output. See the module."""

    def __init__(
        self, loop: EventLoop, *, max_floor_s: float, budget: WriteBudget, writes_per_turn: int = WRITES_PER_TURN
    ) -> None:
        self._loop = loop
        self._writes_per_turn = writes_per_turn
        self._max_floor_s = max_floor_s
        self.budget = budget
        self._first: deque[PacedStream] = deque()
        """Streams whose first output is due. They come before the others: a reader waits for nothing as for the first
        token."""
        self._ready: deque[PacedStream] = deque()
        self._waiting: list[tuple[float, int, PacedStream]] = []
        self._num_enqueued = 0
        self._is_flushing = False
        self._short_until_s = -math.inf
        self._num_written = 0
        """Messages that the last turn of _flush() has begun to write."""
        self._timer: Any = None
        self._timer_s = float("inf")
        self.num_streaming = 0
        """Streams that have been written and have not ended."""

    @property
    def floor_s(self) -> float:
        """Time between two writes of one stream, at least."""
        return min(self._max_floor_s, self.num_streaming / self.budget.writes_per_s)

    def open(self) -> PacedStream:
        """A new stream, to be used as a context manager that lasts as long as the stream."""
        return PacedStream(self)

    def on_call(self) -> None:
        """A call has come: others may be waiting behind it."""
        self._short_until_s = self._loop.time() + ARRIVAL_S

    def _enqueue(self, stream: PacedStream) -> None:
        last_write_s = stream._last_write_s
        if last_write_s is None or last_write_s + self.floor_s <= self._loop.time():
            self._enqueue_now(stream)
            return
        due_s = last_write_s + self.floor_s
        stream._due_s = due_s
        self._num_enqueued += 1
        heapq.heappush(self._waiting, (due_s, self._num_enqueued, stream))
        if due_s < self._timer_s:
            self._set_timer(due_s)

    def _enqueue_now(self, stream: PacedStream) -> None:
        ready = self._ready
        if stream._last_write_s is None:
            self.num_streaming += 1
            ready = self._first
        # Not when it is called: streams whose tokens came together stay together, and share turns of the loop.
        stream._last_write_s = self._loop.time()
        stream._due_s = 0.0
        ready.append(stream)
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Has some streams written. It is called once more after the last of them, to measure what that took."""
        self.budget.on_turn(self._num_written)
        self._num_written = 0
        self._is_flushing = bool(self._first or self._ready)
        is_short = self._loop.time() < self._short_until_s
        for _ in range(WRITES_PER_SHORT_TURN if is_short else self._writes_per_turn):
            ready = self._first or self._ready
            if not ready:
                break
            self._num_written += ready.popleft()._call()
        if self._is_flushing:
            self._loop.call_soon(self._flush)

    def _set_timer(self, when_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = when_s
        self._timer = self._loop.call_at(when_s + TIMER_SLACK_S, self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._timer_s = None, float("inf")
        now_s = self._loop.time()
        while self._waiting and self._waiting[0][0] <= now_s:
            due_s, _, stream = heapq.heappop(self._waiting)
            # A stream that was called in the meantime has another due time or none.
            if stream._due_s == due_s:
                self._enqueue_now(stream)
        if self._waiting:
            self._set_timer(self._waiting[0][0])
