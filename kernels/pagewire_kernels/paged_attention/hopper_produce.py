"""The warp of hopper_prefill.py's kernel that finds items with work and copies their queries, keys and values."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from pagewire_kernels.paged_attention import triton_prefill
from pagewire_kernels.paged_attention.hopper_shared import (
    FIRST_POSITION,
    FIRST_ROW,
    KV_HEAD,
    NUM_CONSUMERS,
    NUM_QUERIES,
    NUM_TILES,
    PANEL,
    ROWS,
    SEQ_LEN,
    load_box,
    meet,
    post,
    view,
)

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

# Items are counted as triton_prefill.py counts its programs; Gluon compiles the same source.
_find_sequence = gluon.jit(triton_prefill.find_sequence.fn)


@gluon.jit
def _copy_queries(desc, first_row, first_head, full, queries):
    """Copies the queries of an item, from row first_row of the batch on.

    queries: [NUM_CONSUMERS, ROWS, HEAD_DIM], seen as panels [queries of a consumer, heads of a group, PANEL].
    """
    NUM_PANELS: gl.constexpr = queries.shape[2] // PANEL
    QUERIES: gl.constexpr = desc.block_shape[0]
    NUM_PARTS: gl.constexpr = NUM_CONSUMERS * NUM_PANELS
    panels = view(queries, queries.dtype, [NUM_PARTS, QUERIES, desc.block_shape[1], PANEL], desc.layout)
    mbarrier.expect(full, NUM_CONSUMERS * ROWS * queries.shape[2] * 2)
    for part in gl.static_range(NUM_PARTS):
        row = first_row + part // NUM_PANELS * QUERIES
        load_box(desc, [row, first_head, part % NUM_PANELS * PANEL], full, panels.index(part))


@gluon.jit
def _box_rows(table_ptr, start, seq_len, BLOCK_SIZE: gl.constexpr, BOX: gl.constexpr, TILE: gl.constexpr):
    """Returns the first slot of each box of keys start .. start + TILE - 1 in the cache, seen as [slots, ...].

    Behind the sequence's last block, that block is repeated; a void sequence, which has none, gets block 0. The content
    of such boxes is not used: scores are masked and values cleared (hopper_consume.py).
    """
    last = gl.maximum(seq_len - 1, 0) // BLOCK_SIZE
    rows = ()
    for box in gl.static_range(TILE // BOX):
        key = start + box * BOX
        block = gl.load(table_ptr + gl.minimum(key // BLOCK_SIZE, last), mask=seq_len > 0, other=0)
        rows += (block * BLOCK_SIZE + key % BLOCK_SIZE,)  # type: ignore[assignment]
    return rows


@gluon.jit
def _copy_tile(desc, rows, column, empty, full, stages, count):
    """Copies the `count`-th tile, of boxes that begin at `rows` of the cache, to its stage once that is empty.

    stages: [NUM_STAGES, TILE, HEAD_DIM], seen as boxes [rows of a box, PANEL].
    """
    NUM_STAGES: gl.constexpr = stages.shape[0]
    NUM_BOXES: gl.constexpr = len(rows)
    NUM_PANELS: gl.constexpr = stages.shape[2] // PANEL
    boxes = view(stages, stages.dtype, [NUM_STAGES * NUM_PANELS * NUM_BOXES, desc.block_shape[0], PANEL], desc.layout)
    stage = count % NUM_STAGES
    mbarrier.wait(empty.index(stage), (count // NUM_STAGES & 1) ^ 1)
    mbarrier.expect(full.index(stage), stages.shape[1] * stages.shape[2] * 2)
    for panel in gl.static_range(NUM_PANELS):
        for box in gl.static_range(NUM_BOXES):
            place = (stage * NUM_PANELS + panel) * NUM_BOXES + box
            load_box(desc, [rows[box], column + panel * PANEL], full.index(stage), boxes.index(place))


@gluon.jit
def produce(
    descs,
    pointers,
    scalars,
    buffers,
    barriers,
    NUM_KV_HEADS: gl.constexpr,
    GROUP_SIZE: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
):
    """Finds items with work, leaves a notice of each, and copies its queries, keys and values, last tile first.

    See the kernel for what the arguments hold. The notice after the last item has no tiles.
    """
    query_desc, key_desc, value_desc = descs
    block_tables_ptr, query_start_loc_ptr, seq_lens_ptr, counter_ptr, row_counts_ptr = pointers
    first_seq, num_seqs, num_items, stride_table = scalars
    queries, keys, values, notice = buffers
    query_full, query_empty, key_full, key_empty, value_full, value_empty = barriers
    TILE: gl.constexpr = keys.shape[1]
    BLOCK_Q: gl.constexpr = NUM_CONSUMERS * ROWS // GROUP_SIZE
    BOX: gl.constexpr = key_desc.block_shape[0]
    ONE: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])

    if row_counts_ptr is not None:
        num_seqs = gl.load(row_counts_ptr).to(gl.int32)
        first_seq = gl.load(row_counts_ptr + 1).to(gl.int32)
        num_tokens = gl.load(query_start_loc_ptr + num_seqs) - gl.load(query_start_loc_ptr + first_seq)
        num_items = (num_tokens // BLOCK_Q + num_seqs - first_seq) * NUM_KV_HEADS
    item = gl.program_id(0)
    turn = 0
    count = 0
    while item < num_items:
        kv_head = item % NUM_KV_HEADS
        seq, tile = _find_sequence(query_start_loc_ptr, item // NUM_KV_HEADS, first_seq, num_seqs, BLOCK_Q)
        query_start = gl.load(query_start_loc_ptr + seq)
        query_len = gl.load(query_start_loc_ptr + seq + 1) - query_start
        first_query = (gl.cdiv(query_len, BLOCK_Q) - 1 - tile) * BLOCK_Q
        if first_query >= 0:
            seq_len = gl.load(seq_lens_ptr + seq)
            first_position = seq_len - query_len + first_query
            # A void sequence takes one tile too, without a visible key.
            num_tiles = gl.maximum(gl.cdiv(gl.minimum(first_position + BLOCK_Q, seq_len), TILE), 1)
            mbarrier.wait(query_empty, (turn & 1) ^ 1)
            post(notice, NUM_TILES, num_tiles, ONE)
            post(notice, KV_HEAD, kv_head, ONE)
            post(notice, FIRST_ROW, query_start + first_query, ONE)
            post(notice, NUM_QUERIES, query_len - first_query, ONE)
            post(notice, FIRST_POSITION, first_position, ONE)
            post(notice, SEQ_LEN, seq_len, ONE)
            meet()
            _copy_queries(query_desc, query_start + first_query, kv_head * GROUP_SIZE, query_full, queries)
            table_ptr = block_tables_ptr + seq.to(gl.int64) * stride_table
            for i in range(num_tiles):
                # The look-up comes before the wait for the stage, because this warp is ahead of its consumers.
                rows = _box_rows(table_ptr, (num_tiles - 1 - i) * TILE, seq_len, BLOCK_SIZE, BOX, TILE)
                column = kv_head * keys.shape[2]
                _copy_tile(key_desc, rows, column, key_empty, key_full, keys, count + i)
                _copy_tile(value_desc, rows, column, value_empty, value_full, values, count + i)
            count += num_tiles
            turn += 1
        if num_items > gl.num_programs(0):
            item = gl.num_programs(0) + gl.atomic_add(counter_ptr, 1, sem="relaxed")
        else:
            item = num_items
    mbarrier.wait(query_empty, (turn & 1) ^ 1)
    post(notice, NUM_TILES, 0, ONE)
    meet()
    mbarrier.arrive(query_full, count=1)
