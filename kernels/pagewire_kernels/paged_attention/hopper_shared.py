"""Shared by both sides of hopper_prefill.py's kernel: sizes, the notice of an item, names that Triton has changed."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

# Names that differ between Triton 3.6 and later versions.
_Shared = gl.shared_memory_descriptor
meet = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
load_box = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
view = _Shared.reinterpret if hasattr(_Shared, "reinterpret") else _Shared._reinterpret

NUM_CONSUMERS = gl.constexpr(2)
"""Warp groups that attend. A third would leave 160 registers a thread and was not faster."""
ROWS = gl.constexpr(64)
"""Rows of a warp group: the number that wgmma takes."""
PANEL = gl.constexpr(64)
"""Elements of 128 bytes, the widest swizzle: in shared memory a tile is panels [rows, PANEL], one behind the other."""

# Indices of the numbers in the notice that the producer leaves for the consumers of an item.
NUM_TILES = gl.constexpr(0)
KV_HEAD = gl.constexpr(1)
FIRST_ROW = gl.constexpr(2)
NUM_QUERIES = gl.constexpr(3)
FIRST_POSITION = gl.constexpr(4)
SEQ_LEN = gl.constexpr(5)
NOTICE_SIZE = gl.constexpr(8)


@gluon.jit
def post(notice, place: gl.constexpr, value, LAYOUT: gl.constexpr):
    """Writes a number to the notice."""
    notice.index(place).store(gl.full([1], value, gl.int32, LAYOUT))


@gluon.jit
def read(notice, place: gl.constexpr, LAYOUT: gl.constexpr):
    """Reads a number of the notice."""
    return gl.sum(notice.index(place).load(LAYOUT), axis=0)
