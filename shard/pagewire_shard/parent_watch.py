"""Ends the process with its parent: standard input, a pipe from the parent, ends when the parent is gone."""

import os
import threading
from collections.abc import Callable

STOP_TIMEOUT_S = 10.0


def watch_parent(on_parent_gone: Callable[[], None], input_fd: int = 0) -> None:
    """Calls back, from a thread of its own, when the input ends; ends the process the hard way if that has no effect.

    A thread, since an event loop cannot wait on every kind of file; daemonic, since it may wait for ever.
    """

    def watch() -> None:
        while os.read(input_fd, 4096):
            pass
        on_parent_gone()
        timer = threading.Timer(STOP_TIMEOUT_S, os._exit, args=(1,))
        timer.daemon = True
        timer.start()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
