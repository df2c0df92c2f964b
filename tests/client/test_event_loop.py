"""The background event loop of synchronous callers."""

import threading
import time

import pytest
from pagewire import event_loop


def test_threads_that_call_first_at_the_same_time_share_one_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """grpc.aio's calls belong to the loop on which their channel was opened."""
    made: list[object] = []

    class SlowToStart(event_loop.BackgroundLoop):
        def __init__(self) -> None:
            made.append(self)
            time.sleep(0.05)  # Long enough for the other threads to ask meanwhile.

    monkeypatch.setattr(event_loop, "BackgroundLoop", SlowToStart)
    monkeypatch.setattr(event_loop, "_started", None)
    loops: list[object] = []
    threads = [threading.Thread(target=lambda: loops.append(event_loop.background_loop())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert loops == made * 8
