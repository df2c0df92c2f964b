"""Makes work repeatable without the Python that launched it.

Source: https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

Work = Callable[[], None]


class Capturer(Protocol):
    """Makes work repeatable."""

    def warm(self, work: Work) -> None:
        """Runs the work once: compiles and loads its kernels, which a capture must not."""

    def capture(self, work: Work) -> Work:
        """Returns a function that does the work again, on the same tensors; the work has been warmed."""

    def used_bytes(self) -> int:
        """Memory of the device that is in use, by whomever."""


class CpuCapturer:
    """Repeats work by doing it again."""

    def warm(self, work: Work) -> None:
        """See Capturer. There is nothing to load."""

    def capture(self, work: Work) -> Work:
        """See Capturer."""
        work()
        return work

    def used_bytes(self) -> int:
        """See Capturer. Nothing is kept."""
        return 0


class CudaCapturer:
    """Captures work in CUDA graphs, whose scratch memory is one pool: no two of them run at once."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def warm(self, work: Work) -> None:
        """See Capturer."""
        with self._on_own_stream():
            work()

    def capture(self, work: Work) -> Work:
        """See Capturer."""
        graph = torch.cuda.CUDAGraph()
        with self._on_own_stream():
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
        return graph.replay

    def used_bytes(self) -> int:
        """See Capturer. Gives back what torch keeps for nobody, such as memory of warmed work."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return total - free

    @contextmanager
    def _on_own_stream(self) -> Iterator[None]:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream().wait_stream(self._stream)


@contextmanager
def garbage_collected_before() -> Iterator[None]:
    """Collects garbage once and not again within: a graph of an earlier engine that is destroyed while another one is
    captured invalidates the capture."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
