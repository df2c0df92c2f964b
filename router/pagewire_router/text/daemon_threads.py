"""Threads that never keep the process alive. Those of the standard library's executor are joined at exit."""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_Task = Callable[[], None]


class DaemonThreads(Executor):
    """An executor whose threads end with the process, whatever they are doing then."""

    def __init__(self, num_threads: int, name: str) -> None:
        self._tasks: SimpleQueue[tuple[Future[object], _Task] | None] = SimpleQueue()
        self._is_shut_down = False
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}_{index}", daemon=True) for index in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Runs the call on a thread, in the order of submission. Raises RuntimeError after shutdown()."""
        if self._is_shut_down:
            raise RuntimeError("the threads have ended")
        future: Future[T] = Future()

        def run() -> None:
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._tasks.put((future, run))  # type: ignore[arg-type]
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the threads after what was submitted, or with cancel_futures after what has begun."""
        self._is_shut_down = True
        if cancel_futures:
            self._cancel_waiting()
        for _ in self._threads:
            self._tasks.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _cancel_waiting(self) -> None:
        while True:
            try:
                task = self._tasks.get_nowait()
            except Empty:
                return
            if task is not None:
                task[0].cancel()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, run = task
            if future.set_running_or_notify_cancel():
                run()
            del task, future, run  # The next task may be long in coming.
