"""The warp groups of hopper_prefill.py's kernel that attend: scores, softmax and weighted values of 64 rows each."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from pagewire_kernels.paged_attention.hopper_shared import (
    FIRST_POSITION,
    FIRST_ROW,
    KV_HEAD,
    NUM_QUERIES,
    NUM_TILES,
    PANEL,
    ROWS,
    SEQ_LEN,
    meet,
    read,
    view,
)

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

LOG2_E = gl.constexpr(1.4426950408889634)
LOWEST = gl.constexpr(-1.0e30)
"""Initial value of a running maximum. It is finite, so that -inf - maximum is never NaN."""
ZERO_ROWS = gl.constexpr(16)
"""Rows that a warp group clears at once."""


@gluon.jit
def _scores(query, keys, stage):
    """Begins the products of query [ROWS, HEAD_DIM] and the keys of a stage, [TILE, HEAD_DIM]."""
    TILE: gl.constexpr = keys.shape[1]
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    zeros = gl.zeros([ROWS, TILE], gl.float32, SCORES)
    return hopper.warpgroup_mma(query, keys.index(stage).permute((1, 0)), zeros, use_acc=False, is_async=True)


@gluon.jit
def _mask(scores, last):
    """Returns scores [ROWS, TILE] with -inf in columns behind last [ROWS].

    A thread has pairs of columns, 8 apart. Seen as [ROWS, TILE // 8, 8] the middle axis is the same in each thread, and
    its indices are constants in the code; the columns themselves would fill registers all through the kernel.
    """
    LAYOUT: gl.constexpr = scores.type.layout
    NUM_EIGHTS: gl.constexpr = scores.shape[1] // 8
    eights = gl.reshape(scores, [ROWS, NUM_EIGHTS, 8])
    PAIRS: gl.constexpr = eights.type.layout
    column = gl.arange(0, 8, gl.SliceLayout(0, gl.SliceLayout(1, PAIRS)))
    first = 8 * gl.arange(0, NUM_EIGHTS, gl.SliceLayout(0, gl.SliceLayout(2, PAIRS)))
    rest = gl.convert_layout(last, gl.SliceLayout(1, gl.SliceLayout(1, PAIRS)))[:, None] - column[None, :]
    # Written out in place of gl.where, for which LLVM would first gather the conditions of all elements in one integer.
    eights = gl.inline_asm_elementwise(
        "{ .reg .pred p; setp.le.s32 p, $2, $3; selp.f32 $0, $1, 0fFF800000, p; }",
        "=f,f,r,r",
        [eights, first[None, :, None], rest[:, None, :]],
        gl.float32,
        is_pure=True,
        pack=1,
    )
    return gl.convert_layout(gl.reshape(eights, [ROWS, 8 * NUM_EIGHTS]), LAYOUT)


@gluon.jit
def _weigh(scores, positions, start, factor, maximum, MASKED: gl.constexpr):
    """Returns the new maximum [ROWS], the weights [ROWS, TILE] and the factor for earlier sums [ROWS]."""
    if MASKED:
        scores = _mask(scores, positions - start)
    new_maximum = gl.maximum(maximum, gl.max(scores, axis=1) * factor)
    weights = gl.exp2(scores * factor - new_maximum[:, None])
    return new_maximum, weights, gl.exp2(maximum - new_maximum)


@gluon.jit
def _pack(powers, DTYPE: gl.constexpr):
    """Packs weights [ROWS, TILE] of DTYPE, two neighbours in an integer: [ROWS, TILE // 2].

    A loop hands numbers of 16 bits to its next round one by one, and would take them apart and put them together again.
    """
    low, high = gl.split(gl.reshape(powers, [ROWS, powers.shape[1] // 2, 2]))
    CONVERT: gl.constexpr = "cvt.rn.f16x2.f32 $0, $2, $1;" if DTYPE.is_fp16() else "cvt.rn.bf16x2.f32 $0, $2, $1;"
    return gl.inline_asm_elementwise(CONVERT, "=r,f,f", [low, high], gl.int32, is_pure=True, pack=1)


@gluon.jit
def _unpack(packed, DTYPE: gl.constexpr, LAYOUT: gl.constexpr):
    """The inverse of _pack, for the left side of wgmma: [ROWS, TILE]."""
    low, high = gl.inline_asm_elementwise(
        "mov.b32 {$0, $1}, $2;", "=h,=h,r", [packed], (gl.int16, gl.int16), is_pure=True, pack=1
    )
    pairs = gl.reshape(gl.join(low, high), [ROWS, 2 * packed.shape[1]])
    return gl.convert_layout(pairs.to(DTYPE, bitcast=True), gl.DotOperandLayout(0, LAYOUT, 2))


@gluon.jit
def _clear_values(values, stage, first_row):
    """Zeros rows first_row .. of a stage's values: they may hold NaN, and 0 * NaN is NaN. Every group does it."""
    NUM_PANELS: gl.constexpr = values.shape[2] // PANEL
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    PARTS: gl.constexpr = values.shape[1] // ZERO_ROWS
    parts = view(values, values.dtype, [values.shape[0] * NUM_PANELS * PARTS, ZERO_ROWS, PANEL], values.layout)
    rows = gl.arange(0, ZERO_ROWS, gl.SliceLayout(1, LAYOUT))
    for part in range(first_row // ZERO_ROWS, PARTS):
        for panel in gl.static_range(NUM_PANELS):
            place = parts.index((stage * NUM_PANELS + panel) * PARTS + part)
            old = place.load(LAYOUT)  # [ZERO_ROWS, PANEL]
            keep = (part * ZERO_ROWS + rows < first_row)[:, None]
            place.store(gl.where(keep, old, gl.zeros_like(old)))
    # wgmma does not see the threads' own writes to shared memory before this fence.
    hopper.fence_async_shared()
    meet()


@gluon.jit
def _first_tile(num_tiles, start, count, query, buffers, barriers, positions, seq_len, factor):
    """The state of _attend behind an item's first tile, its sequence's last keys: the values may end within it."""
    _, keys, values, _ = buffers
    _, _, key_full, key_empty, value_full, _ = barriers
    NUM_STAGES: gl.constexpr = keys.shape[0]
    TILE: gl.constexpr = keys.shape[1]
    HEAD_DIM: gl.constexpr = keys.shape[2]
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    mbarrier.wait(key_full.index(count % NUM_STAGES), count // NUM_STAGES & 1)
    scores = _scores(query, keys, count % NUM_STAGES)
    scores = hopper.warpgroup_mma_wait(0, deps=(scores,))
    mbarrier.arrive(key_empty.index(count % NUM_STAGES), count=1)
    lowest = gl.full([ROWS], LOWEST, gl.float32, gl.SliceLayout(1, scores.type.layout))
    maximum, powers, _ = _weigh(scores, positions, start, factor, lowest, True)
    total = gl.sum(powers, axis=1)
    packed = _pack(powers, keys.dtype)
    mbarrier.wait(key_full.index((count + 1) % NUM_STAGES), (count + 1) // NUM_STAGES & 1, num_tiles > 1)
    if start + TILE > seq_len:
        mbarrier.wait(value_full.index(count % NUM_STAGES), count // NUM_STAGES & 1)
        _clear_values(values, count % NUM_STAGES, seq_len - start)
    return maximum, total, gl.zeros([ROWS, HEAD_DIM], gl.float32, SUMS), packed


@gluon.jit
def _attend(
    bounds, num_tiles, start, count, query, buffers, barriers, positions, factor, state, MASKED: gl.constexpr
):  # fmt: skip
    """Tiles bounds[0] .. bounds[1] - 1, counted from the last one, which begins at key `start` and is the `count`-th.

    state = (maximum, total, [ROWS] each; weighted sum [ROWS, HEAD_DIM]; packed weights [ROWS, TILE // 2] of the tile
    before, whose values are still to be added). A tile's values are added one round later than its keys are taken:
    tensor cores do that during the round's exponentials.
    """
    _, keys, values, _ = buffers
    _, _, key_full, key_empty, value_full, value_empty = barriers
    maximum, total, accumulator, packed = state
    NUM_STAGES: gl.constexpr = keys.shape[0]
    TILE: gl.constexpr = keys.shape[1]
    SUMS: gl.constexpr = accumulator.type.layout
    for i in range(bounds[0], bounds[1]):
        weights = _unpack(packed, keys.dtype, SUMS)
        scores = _scores(query, keys, (count + i) % NUM_STAGES)
        before = (count + i - 1) % NUM_STAGES
        mbarrier.wait(value_full.index(before), (count + i - 1) // NUM_STAGES & 1)
        sums = hopper.warpgroup_mma(weights, values.index(before), accumulator, is_async=True)
        scores = hopper.warpgroup_mma_wait(1, deps=(scores,))
        mbarrier.arrive(key_empty.index((count + i) % NUM_STAGES), count=1)
        maximum, powers, rescale = _weigh(scores, positions, start - i * TILE, factor, maximum, MASKED)
        total = total * rescale + gl.sum(powers, axis=1)
        packed = _pack(powers, keys.dtype)
        # The next tile's keys are waited for here, for order's sake: ptxas moves all of the above behind the next line
        # when it may, and what is to run at the same time would run one after the other. A loop stands in its way.
        mbarrier.wait(
            key_full.index((count + i + 1) % NUM_STAGES), (count + i + 1) // NUM_STAGES & 1, i + 1 < num_tiles
        )
        accumulator = hopper.warpgroup_mma_wait(0, deps=(sums,))
        mbarrier.arrive(value_empty.index(before), count=1)
        accumulator = accumulator * gl.convert_layout(rescale, gl.SliceLayout(1, SUMS))[:, None]
    return maximum, total, accumulator, packed


@gluon.jit
def _finish(
    state, num_tiles, count, buffers, barriers, pointers, kv_head, first_row, num_queries, NUM_KV_HEADS: gl.constexpr,
    GROUP_SIZE: gl.constexpr,
):  # fmt: skip
    """Adds the values of the last of an item's num_tiles tiles, whose first is the `count`-th, and writes its rows.

    They belong to num_queries tokens or fewer, from the first_row-th of the batch on.
    """
    _, keys, values, _ = buffers
    _, query_empty, _, _, value_full, value_empty = barriers
    sinks_ptr, out_ptr = pointers
    maximum, total, accumulator, packed = state
    NUM_STAGES: gl.constexpr = keys.shape[0]
    HEAD_DIM: gl.constexpr = keys.shape[2]
    SUMS: gl.constexpr = accumulator.type.layout
    LINE: gl.constexpr = gl.SliceLayout(1, SUMS)
    weights = _unpack(packed, keys.dtype, SUMS)
    mbarrier.arrive(query_empty, count=1)
    end = count + num_tiles
    last = (end - 1) % NUM_STAGES
    mbarrier.wait(value_full.index(last), (end - 1) // NUM_STAGES & 1)
    sums = hopper.warpgroup_mma(weights, values.index(last), accumulator, is_async=True)

    # The addresses of the rows are computed while the product runs.
    line = gl.arange(0, ROWS, LINE)
    dims = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, SUMS))
    heads = kv_head * GROUP_SIZE + line % GROUP_SIZE
    token = (first_row + line // GROUP_SIZE).to(gl.int64)
    total = gl.convert_layout(total, LINE)
    if sinks_ptr is not None:
        sinks = gl.load(sinks_ptr + heads).to(gl.float32) * LOG2_E
        # A sink far above all scores gives infinity here and the correct quotient, 0.
        total += gl.exp2(sinks - gl.convert_layout(maximum, LINE))
    # A void row saw no key; its output is 0 / 1.
    total = gl.where(total > 0, total, 1.0)
    accumulator = hopper.warpgroup_mma_wait(0, deps=(sums,))
    mbarrier.arrive(value_empty.index(last), count=1)
    out = accumulator * (1.0 / total)[:, None]  # [ROWS, HEAD_DIM]
    offsets = (token[:, None] * (NUM_KV_HEADS * GROUP_SIZE) + heads[:, None]) * HEAD_DIM + dims[None, :]
    mask = (line // GROUP_SIZE < num_queries)[:, None]
    gl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=mask)


@gluon.jit
def consume(CONSUMER: gl.constexpr, arguments, NUM_KV_HEADS: gl.constexpr, GROUP_SIZE: gl.constexpr):
    """Attends from the CONSUMER-th 64 rows of each item, until a notice without tiles comes.

    arguments = ((sinks_ptr, out_ptr), score_scale, buffers, barriers): see the kernel.
    """
    pointers, factor, buffers, barriers = arguments
    queries, keys, _, notice = buffers
    query_full = barriers[0]
    TILE: gl.constexpr = keys.shape[1]
    QUERIES: gl.constexpr = ROWS // GROUP_SIZE
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    ONE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    query = queries.index(CONSUMER)
    rows = gl.arange(0, ROWS, gl.SliceLayout(1, SCORES))

    turn = 0
    count = 0
    mbarrier.wait(query_full, 0)
    num_tiles = read(notice, NUM_TILES, ONE)
    while num_tiles > 0:
        kv_head = read(notice, KV_HEAD, ONE)
        first_row = read(notice, FIRST_ROW, ONE) + CONSUMER * QUERIES
        num_queries = read(notice, NUM_QUERIES, ONE) - CONSUMER * QUERIES
        first_position = read(notice, FIRST_POSITION, ONE) + CONSUMER * QUERIES
        seq_len = read(notice, SEQ_LEN, ONE)
        positions = first_position + rows // GROUP_SIZE
        start = (num_tiles - 1) * TILE
        state = _first_tile(num_tiles, start, count, query, buffers, barriers, positions, seq_len, factor)
        # Tiles that each row of the group sees are computed without masks.
        num_masked = gl.maximum(num_tiles - gl.maximum(first_position + 1, 0) // TILE, 1)
        num_masked = gl.minimum(num_masked, num_tiles)
        state = _attend(
            (1, num_masked), num_tiles, start, count, query, buffers, barriers, positions, factor, state, True
        )
        state = _attend(
            (num_masked, num_tiles), num_tiles, start, count, query, buffers, barriers, positions, factor, state, False
        )
        _finish(
            state, num_tiles, count, buffers, barriers, pointers, kv_head, first_row, num_queries, NUM_KV_HEADS,
            GROUP_SIZE,
        )  # fmt: skip
        count += num_tiles
        turn += 1
        mbarrier.wait(query_full, turn & 1)
        num_tiles = read(notice, NUM_TILES, ONE)
