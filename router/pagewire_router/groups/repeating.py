"""A periodic timer of the event loop."""

import asyncio
from collections.abc import Callable


class Repeating:
    """Calls a function every interval_s until cancelled."""

    def __init__(self, loop: asyncio.AbstractEventLoop, interval_s: float, callback: Callable[[], None]) -> None:
        self._loop, self._interval_s, self._callback = loop, interval_s, callback
        self._handle = loop.call_later(interval_s, self._fire)

    def _fire(self) -> None:
        self._handle = self._loop.call_later(self._interval_s, self._fire)
        self._callback()

    def cancel(self) -> None:
        """Ends the calls."""
        self._handle.cancel()
