"""Threads of the CPU kernels. torch's OpenMP team runs them, so that two thread pools never compete for the cores.

numba's OpenMP layer links a second libgomp beside the one torch ships (it asks for another file name), and its parallel
loops are slow to compile. So compiled kernels are plain functions that a GNU OpenMP entry point, found through torch,
runs on every thread of the team; they share out their work by an atomic counter. See team.py.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_MIN_WORK_PER_THREAD = 16_384
"""Elements from which a further thread saves more than its wake-up costs (about 3 us)."""

_num_threads = 0


def set_num_threads(num_threads: int) -> None:
    """Sets the number of threads of torch's operators and of our kernels.

    Call it on the thread that runs the model, before its first operator.

    Raises:
        ValueError: num_threads is below 1.
    """
    global _num_threads
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, not {num_threads}")
    torch.set_num_threads(num_threads)
    _num_threads = num_threads


def get_num_threads() -> int:
    """Returns the number of threads that a CPU kernel may use: that of set_num_threads, else torch's choice."""
    return _num_threads or torch.get_num_threads()


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch's operators and our kernels on the calling thread alone, until the context is left."""
    own, of_torch = _num_threads, torch.get_num_threads()
    set_num_threads(1)
    try:
        yield
    finally:
        set_num_threads(of_torch)
        _restore(own)


def _restore(num_threads: int) -> None:
    global _num_threads
    _num_threads = num_threads


def team_size(num_elements: int) -> int:
    """Returns the number of threads that pays off for a pass over num_elements float32 values."""
    limit = get_num_threads()
    return limit if limit == 1 else max(1, min(limit, num_elements // _MIN_WORK_PER_THREAD))


def gomp_parallel_address() -> int:
    """Returns the address of GOMP_parallel(function, data, num_threads, flags) in torch's OpenMP runtime, or 0.

    LLVM's and Intel's runtimes export it too.
    """
    library = torch._C.__file__
    assert library is not None
    try:
        # dlsym on a handle searches the library's dependencies, in order: it finds torch's runtime, not the system's.
        function = ctypes.CDLL(library).GOMP_parallel
    except AttributeError:
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0
