"""few_rows_linear on Hopper, for 2 to some hundred rows: bulk copies fill all of a multiprocessor's shared memory.

In Gluon, Triton's language for one level below tiles. A program takes nearly all shared memory of a multiprocessor, so
that there is one on each, and fills it with its first tiles of the weight before it waits for the kernel before: the
memory is busy while that kernel ends and while the small kernels between two products run.
"""

from functools import cache

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from pagewire_kernels.few_rows_linear.triton import check_fits
from pagewire_kernels.gpu import dependent_launch
from pagewire_kernels.gpu.dependent_launch import launch_options
from pagewire_kernels.tuning.few_rows_linear import HopperTile

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

# Names that differ between Triton 3.6 and later versions.
meet = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
load_box = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
wait_for_previous = gluon.jit(dependent_launch.wait_for_previous.fn)
release_next = gluon.jit(dependent_launch.release_next.fn)

PANEL = gl.constexpr(64)
"""Elements of 128 bytes, the widest swizzle: columns of the weight that are loaded at once."""
_MAX_TILES = 4096
"""Tiles of a launch whose sums are split, at most."""
GROUP_ROWS = gl.constexpr(8)
"""Tiles of rows that share a tile of the weight, one after the other, while it is in the L2 cache."""


@gluon.jit
def _load_weight(desc, weights, full, stage, columns, first, go, PANELS: gl.constexpr, NUM_BYTES: gl.constexpr):
    """Copies a stage's panels of the weight, from its first-th on, for the tiles of rows that begin at `columns`.

    `full` expects NUM_BYTES, which are those of _load_rows too.
    """
    NUM_PARTS: gl.constexpr = len(columns)
    barrier = full.index(stage)
    mbarrier.expect(barrier, NUM_BYTES, go)
    for part in gl.static_range(NUM_PARTS):
        for panel in gl.static_range(PANELS):
            place = weights.index((stage * NUM_PARTS + part) * PANELS + panel)
            load_box(desc, [columns[part], (first + panel) * PANEL], barrier, place, go)


@gluon.jit
def _load_rows(desc, rows, full, stage, row, first, go, PANELS: gl.constexpr):
    """Copies a stage's panels of x."""
    for panel in gl.static_range(PANELS):
        place = rows.index(stage * PANELS + panel)
        load_box(desc, [row, (first + panel) * PANEL], full.index(stage), place, go)


@gluon.jit
def _multiply(weights, rows, stage, total, total_up, GATED: gl.constexpr, PANELS: gl.constexpr):
    """Begins the products of a stage's panels."""
    NUM_PARTS: gl.constexpr = 2 if GATED else 1
    for panel in gl.static_range(PANELS):
        x = rows.index(stage * PANELS + panel).permute((1, 0))
        weight = weights.index(stage * NUM_PARTS * PANELS + panel)
        total = hopper.warpgroup_mma(weight, x, total, is_async=True)
        if GATED:
            up = weights.index((stage * NUM_PARTS + 1) * PANELS + panel)
            total_up = hopper.warpgroup_mma(up, x, total_up, is_async=True)
    return total, total_up


@gluon.jit
def _wait(total, total_up, LEFT: gl.constexpr, GATED: gl.constexpr):
    """Waits until LEFT products with a panel are in flight."""
    if GATED:
        total, total_up = hopper.warpgroup_mma_wait(2 * LEFT, deps=(total, total_up))
    else:
        total = hopper.warpgroup_mma_wait(LEFT, deps=(total,))
    return total, total_up


@gluon.jit
def _exchange(partial_ptr, part, total, split, SPLITS: gl.constexpr, STORE: gl.constexpr):
    """Stores a split's sums, or returns the sum of all splits', in the order of the splits."""
    LAYOUT: gl.constexpr = total.type.layout
    HEIGHT: gl.constexpr = total.shape[0]
    WIDTH: gl.constexpr = total.shape[1]
    line = gl.arange(0, HEIGHT, gl.SliceLayout(1, LAYOUT))[:, None] * WIDTH
    places = line + gl.arange(0, WIDTH, gl.SliceLayout(0, LAYOUT))[None, :]
    base = partial_ptr + part.to(gl.int64) * (SPLITS * HEIGHT * WIDTH)
    if STORE:
        gl.store(base + split * (HEIGHT * WIDTH) + places, total)
    else:
        total = gl.load(base + places, cache_modifier=".cg")
        for other in gl.static_range(1, SPLITS):
            total += gl.load(base + other * (HEIGHT * WIDTH) + places, cache_modifier=".cg")
    return total


@gluon.jit
def _add_bias(total, bias_ptr, column, num_outputs):
    lines = column + gl.arange(0, total.shape[0], gl.SliceLayout(1, total.type.layout))
    return total + gl.load(bias_ptr + lines, mask=lines < num_outputs, other=0.0).to(gl.float32)[:, None]


@gluon.jit
def _write(
    out_ptr, bias_ptr, total, total_up, row, column, num_rows, num_outputs, GATED: gl.constexpr, HAS_BIAS: gl.constexpr
):
    """Writes a tile of out from its transposed sums, [BLOCK_N, ROWS]."""
    if HAS_BIAS:
        total = _add_bias(total, bias_ptr, column, num_outputs)
    if GATED:
        if HAS_BIAS:
            total_up = _add_bias(total_up, bias_ptr + num_outputs, column, num_outputs)
        total = total / (1.0 + gl.exp(-total)) * total_up
    BLOCK_N: gl.constexpr = total.shape[0]
    ROWS: gl.constexpr = total.shape[1]
    ACROSS: gl.constexpr = BLOCK_N // 8
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [32 // ACROSS, ACROSS], [gl.num_warps(), 1], [1, 0])
    out = gl.convert_layout(total.to(out_ptr.dtype.element_ty).permute((1, 0)), LAYOUT)  # [ROWS, BLOCK_N]
    rows = row + gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
    columns = column + gl.arange(0, BLOCK_N, gl.SliceLayout(0, LAYOUT))
    out_ptrs = out_ptr + rows.to(gl.int64)[:, None] * num_outputs + columns[None, :]
    gl.store(out_ptrs, out, mask=(rows < num_rows)[:, None] & (columns < num_outputs)[None, :])


@gluon.jit(do_not_specialize=["num_rows", "num_tiles_m"])
def hopper_few_rows_kernel(
    x_desc,
    weight_desc,
    bias_ptr,
    out_ptr,
    partial_ptr,
    counter_ptr,
    num_rows,
    num_tiles_m,
    NUM_OUTPUTS: gl.constexpr,
    K: gl.constexpr,
    ROWS: gl.constexpr,
    BLOCK_N: gl.constexpr,
    SPLITS: gl.constexpr,
    STAGES: gl.constexpr,
    PANELS: gl.constexpr,
    GATED: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    PDL: gl.constexpr,
):
    """Grid: (num_tiles_m * cdiv(NUM_OUTPUTS, BLOCK_N) * SPLITS,); one program makes a tile of out, [ROWS, BLOCK_N], or
    its sum over a SPLITS-th part of K. The last program of a tile to end adds its parts up, always in the same order.

    x: [num_rows, K]; weight: [NUM_OUTPUTS, K], or gate and up, one above the other, of as many rows each; partial:
    float32 sums of the splits of each tile; counter: a zero for each tile, which is zero again at the end.

    The weight is the left operand, so that few rows are not padded to more than 16.
    """
    WARPS: gl.constexpr = gl.num_warps()
    WARPS_N: gl.constexpr = WARPS * 16 // BLOCK_N if WARPS * 16 > BLOCK_N else 1
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS // WARPS_N, WARPS_N], [16, ROWS // WARPS_N, 16])
    OPERAND: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    NUM_PARTS: gl.constexpr = 2 if GATED else 1
    NUM_BYTES: gl.constexpr = PANELS * (NUM_PARTS * BLOCK_N + ROWS) * PANEL * 2
    NUM_TILES_N: gl.constexpr = (NUM_OUTPUTS + BLOCK_N - 1) // BLOCK_N
    NUM_STEPS: gl.constexpr = (K + PANELS * PANEL - 1) // (PANELS * PANEL)
    STEPS: gl.constexpr = (NUM_STEPS + SPLITS - 1) // SPLITS
    weights = gl.allocate_shared_memory(x_desc.dtype, [STAGES * NUM_PARTS * PANELS, BLOCK_N, PANEL], OPERAND)
    rows = gl.allocate_shared_memory(x_desc.dtype, [STAGES * PANELS, ROWS, PANEL], OPERAND)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
    hopper.fence_async_shared()
    meet()

    tile = gl.program_id(0) // SPLITS
    split = gl.program_id(0) % SPLITS
    group = tile // (GROUP_ROWS * NUM_TILES_N)
    group_size = gl.minimum(num_tiles_m - group * GROUP_ROWS, GROUP_ROWS)
    within = tile % (GROUP_ROWS * NUM_TILES_N)
    row = (group * GROUP_ROWS + within % group_size) * ROWS
    column = within // group_size * BLOCK_N
    columns = (column, NUM_OUTPUTS + column) if GATED else (column,)
    first = split * STEPS
    count = gl.minimum(NUM_STEPS - first, STEPS)
    for stage in gl.static_range(STAGES):
        begin = (first + stage) * PANELS
        _load_weight(weight_desc, weights, full, stage, columns, begin, stage < count, PANELS, NUM_BYTES)
    wait_for_previous(PDL)
    release_next(PDL)
    for stage in gl.static_range(STAGES):
        _load_rows(x_desc, rows, full, stage, row, (first + stage) * PANELS, stage < count, PANELS)

    total = gl.zeros([BLOCK_N, ROWS], gl.float32, SUMS)
    total_up = total
    for i in range(count):
        mbarrier.wait(full.index(i % STAGES), i // STAGES & 1)
        total, total_up = _multiply(weights, rows, i % STAGES, total, total_up, GATED, PANELS)
        total, total_up = _wait(total, total_up, PANELS, GATED)
        # All warps are done with the stage before, which now takes what comes STAGES steps after it.
        meet()
        step = i + STAGES - 1
        go = (i > 0) & (step < count)
        begin = (first + step) * PANELS
        _load_weight(weight_desc, weights, full, step % STAGES, columns, begin, go, PANELS, NUM_BYTES)
        _load_rows(x_desc, rows, full, step % STAGES, row, begin, go, PANELS)
    total, total_up = _wait(total, total_up, 0, GATED)

    if SPLITS == 1:
        _write(out_ptr, bias_ptr, total, total_up, row, column, num_rows, NUM_OUTPUTS, GATED, HAS_BIAS)
    else:
        _exchange(partial_ptr, tile * NUM_PARTS, total, split, SPLITS, True)
        if GATED:
            _exchange(partial_ptr, tile * NUM_PARTS + 1, total_up, split, SPLITS, True)
        meet()
        if gl.atomic_add(counter_ptr + tile, 1, sem="acq_rel") == SPLITS - 1:
            gl.store(counter_ptr + tile, 0)
            total = _exchange(partial_ptr, tile * NUM_PARTS, total, split, SPLITS, False)
            if GATED:
                total_up = _exchange(partial_ptr, tile * NUM_PARTS + 1, total_up, split, SPLITS, False)
            _write(out_ptr, bias_ptr, total, total_up, row, column, num_rows, NUM_OUTPUTS, GATED, HAS_BIAS)


def prepare(weight: torch.Tensor) -> bool:
    """Returns whether the kernel takes the weight. Allocates what launches share, which they must not in a capture."""
    _counters(weight.device)
    # Bulk copies need addresses that are multiples of 16 bytes.
    return weight.shape[1] * weight.element_size() % 16 == 0 and weight.data_ptr() % 16 == 0


def few_rows_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gated: bool, tile: HopperTile
) -> torch.Tensor:
    """See the package."""
    check_fits(x, weight, bias, gated)
    num_rows, size = x.shape
    num_outputs = weight.shape[0] // (2 if gated else 1)
    out = torch.empty((num_rows, num_outputs), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    num_tiles_m = triton.cdiv(num_rows, tile.rows)
    num_tiles = num_tiles_m * triton.cdiv(num_outputs, tile.block_n)
    partial = counters = out
    if tile.splits > 1:
        counters = _counters(x.device)
        if num_tiles > len(counters):
            raise ValueError(f"{num_rows} rows of {num_outputs} columns are more tiles than {len(counters)}")
        num_sums = num_tiles * tile.splits * tile.rows * tile.block_n * (2 if gated else 1)
        partial = torch.empty(num_sums, dtype=torch.float32, device=x.device)
    box = PANEL.value
    hopper_few_rows_kernel[(num_tiles * tile.splits,)](
        TensorDescriptor(x, [num_rows, size], [x.stride(0), 1], [tile.rows, box], _panel_layout()),
        TensorDescriptor(weight, list(weight.shape), [size, 1], [tile.block_n, box], _panel_layout()),
        weight if bias is None else bias,
        out,
        partial,
        counters,
        num_rows,
        num_tiles_m,
        **_constants(num_outputs, size, gated, bias is not None, tile),
        **launch_options(x.device),
        num_warps=tile.num_warps,
    )
    return out


def _constants(num_outputs: int, size: int, gated: bool, has_bias: bool, tile: HopperTile) -> dict[str, int | bool]:
    """Returns the constants that the kernel is compiled for."""
    return {
        "NUM_OUTPUTS": num_outputs,
        "K": size,
        "ROWS": tile.rows,
        "BLOCK_N": tile.block_n,
        "SPLITS": tile.splits,
        "STAGES": tile.num_stages,
        "PANELS": tile.panels,
        "GATED": gated,
        "HAS_BIAS": has_bias,
    }


@cache
def _panel_layout() -> gl.NVMMASharedLayout:
    return gl.NVMMASharedLayout(128, 16, 2)


@cache
def _counters(device: torch.device) -> torch.Tensor:
    """Zeros for the programs of a launch to count themselves with, who leave them as they were. Launches share them,
    because a launch writes nothing before the one before has ended; they must all be on one stream."""
    return torch.zeros(_MAX_TILES, dtype=torch.int32, device=device)
