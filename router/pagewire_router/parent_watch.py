"""Noticing that the parent process is gone: its end of our standard input closes."""

import asyncio
import os
import threading
from collections.abc import Callable


def watch_parent(on_gone: Callable[[], None], *, file_descriptor: int = 0) -> None:
    """Calls back on the running event loop when the descriptor is at its end.

    A thread reads it, since event loops cannot watch descriptors of every kind. It never keeps the process alive.
    """
    loop = asyncio.get_running_loop()

    def read_to_end() -> None:
        try:
            while os.read(file_descriptor, 4096):
                pass
        except OSError:
            pass  # Closed under us: gone as well.
        if not loop.is_closed():
            loop.call_soon_threadsafe(on_gone)

    threading.Thread(target=read_to_end, name="parent-watch", daemon=True).start()
