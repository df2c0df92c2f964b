"""Tells a process when to end: at SIGTERM and SIGINT, and after its parent's end."""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable

FORCED_EXIT_AFTER_S = 10.0
"""A process whose parent has ended exits at once after this time, since nobody else would kill it."""


class Shutdown:
    """Told to stop: by SIGTERM or SIGINT, with time to drain; when the parent is gone, at once."""

    def __init__(self, *, with_parent: bool) -> None:
        """Takes the signals of the running event loop; with_parent: watches the parent too."""
        self.requested = asyncio.Event()
        self.is_parent_gone = False
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.requested.set)
        if with_parent:
            watch_parent(self._on_parent_gone)

    def _on_parent_gone(self) -> None:
        self.is_parent_gone = True
        self.requested.set()


def watch_parent(
    on_gone: Callable[[], None], *, file_descriptor: int = 0, forced_exit_after_s: float = FORCED_EXIT_AFTER_S
) -> None:
    """Calls back on the running event loop when the parent's end of our standard input has closed.

    A thread reads it, since event loops cannot watch descriptors of every kind. It never keeps the process alive.
    """
    loop = asyncio.get_running_loop()

    def read_to_end() -> None:
        # A descriptor that is closed under us means that the parent is gone as well.
        with contextlib.suppress(OSError):
            while os.read(file_descriptor, 4096):
                pass
        with contextlib.suppress(RuntimeError):  # The loop is closed: the process ends already.
            loop.call_soon_threadsafe(on_gone)
        timer = threading.Timer(forced_exit_after_s, os._exit, args=(1,))
        timer.daemon = True
        timer.start()

    threading.Thread(target=read_to_end, name="parent-watch", daemon=True).start()
