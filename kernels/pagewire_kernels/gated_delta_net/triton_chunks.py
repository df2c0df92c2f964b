"""Prompts of gated_delta_net on a GPU, in chunks of CHUNK tokens and three launches.

Within a chunk that begins with the state S, with G the logarithms of the decays added up from its start, the state
after token i is exp(G_i) S + sum_{j <= i} exp(G_i - G_j) k_j u_j. The corrections u solve
(1 + A) u = beta (v - exp(G) k S), where A_ij = beta_i exp(G_i - G_j) k_i k_j for j < i. With T = (1 + A)^-1 they are
T (beta v) - (T (beta exp(G) k)) S: both products are made for all chunks at once (prepare_chunks_kernel). What remains
is one chunk after the other (scan_chunks_kernel), and the outputs of all chunks at once (read_chunks_kernel).

Source: arXiv:2412.06464, section 3.3.
"""

import triton
import triton.language as tl

from pagewire_kernels.gated_delta_net.triton_decode import log_decay_of, sigmoid
from pagewire_kernels.paged_attention.triton_prefill import find_sequence

# mypy: disable-error-code="no-untyped-def, no-untyped-call"


@triton.jit
def _find_chunk(query_start_loc_ptr, row_counts_ptr, index, first_seq, num_seqs, CHUNK: tl.constexpr):
    """Returns the first token of the index-th chunk and its number of tokens, 0 if there is no such chunk."""
    if row_counts_ptr is not None:
        num_seqs = tl.load(row_counts_ptr).to(tl.int32)
        first_seq = tl.load(row_counts_ptr + 1).to(tl.int32)
    start, num_tokens = 0, 0
    if first_seq < num_seqs:
        seq, chunk = find_sequence(query_start_loc_ptr, index, first_seq, num_seqs, CHUNK)
        start = tl.load(query_start_loc_ptr + seq) + chunk * CHUNK
        num_tokens = tl.minimum(tl.load(query_start_loc_ptr + seq + 1) - start, CHUNK)
    return start, num_tokens


@triton.jit
def _load_rows(ptr, start, num_tokens, stride, first, LIMIT: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """[CHUNK, BLOCK]: dimensions from `first` on of the LIMIT of a head, of num_tokens tokens; zero beyond either."""
    rows, dims = tl.arange(0, CHUNK), first + tl.arange(0, BLOCK)
    offsets = (start + rows).to(tl.int64)[:, None] * stride + dims[None, :]
    return tl.load(ptr + offsets, mask=(rows < num_tokens)[:, None] & (dims < LIMIT)[None, :], other=0.0)


@triton.jit
def _invert(lower, CHUNK: tl.constexpr, PRECISION: tl.constexpr):
    """(1 + lower)^-1 of a strictly lower triangular matrix: blocks on the diagonal are merged in pairs, which doubles
    their size until there is one. Sums of powers of `lower` would cancel in float32."""
    rows = tl.arange(0, CHUNK)[:, None]
    columns = tl.arange(0, CHUNK)[None, :]
    inverse = tl.where(rows == columns, 1.0, 0.0)
    size = 1
    while size < CHUNK:
        is_below = (rows // size == columns // size + 1) & (rows // size % 2 == 1)
        below = tl.dot(tl.where(is_below, lower, 0.0), inverse, input_precision=PRECISION)
        inverse -= tl.dot(inverse, below, input_precision=PRECISION)
        size *= 2
    return inverse


@triton.jit(do_not_specialize=["first_seq", "num_seqs"])
def prepare_chunks_kernel(
    key_ptr,
    value_ptr,
    beta_logits_ptr,
    decay_logits_ptr,
    a_log_ptr,
    dt_bias_ptr,
    query_start_loc_ptr,
    row_counts_ptr,
    decays_ptr,
    key_scales_ptr,
    from_state_ptr,
    corrections_ptr,
    beta_scale,
    first_seq,
    num_seqs,
    stride_key,
    stride_value,
    stride_beta,
    stride_decay,
    NUM_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE_V: tl.constexpr,
    CHUNK: tl.constexpr,
    NORM_EPS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid: (NUM_HEADS, num_chunks); one program treats one head of one chunk of a sequence from first_seq on.

    Writes for each token and head: decays, the logarithms of decays added up from the chunk's start; key_scales, what
    makes a key one of length 1; from_state [KEY_DIM], what the state is multiplied by; corrections [VALUE_DIM], which
    lack that product. num_chunks is an upper bound, known without the lengths. With row_counts_ptr first_seq and
    num_seqs are read there, and the grid covers any of them.
    """
    head = tl.program_id(0)
    start, num_tokens = _find_chunk(query_start_loc_ptr, row_counts_ptr, tl.program_id(1), first_seq, num_seqs, CHUNK)
    if num_tokens <= 0:
        return
    rows = tl.arange(0, CHUNK)
    is_token = rows < num_tokens
    tokens = (start + rows).to(tl.int64)  # [CHUNK]
    key_ptr += head // GROUP_SIZE * KEY_DIM
    key = _load_rows(key_ptr, start, num_tokens, stride_key, 0, KEY_DIM, CHUNK, BLOCK_K)  # [CHUNK, BLOCK_K]
    wide_key = key.to(tl.float32)
    key_scale = tl.rsqrt(tl.sum(wide_key * wide_key, axis=1) + NORM_EPS)  # [CHUNK]
    beta_logit = tl.load(beta_logits_ptr + tokens * stride_beta + head, mask=is_token, other=0.0)
    decay_logit = tl.load(decay_logits_ptr + tokens * stride_decay + head, mask=is_token, other=0.0)
    beta = tl.where(is_token, beta_scale * sigmoid(beta_logit), 0.0)  # [CHUNK]
    log_decay = log_decay_of(decay_logit, tl.load(a_log_ptr + head), tl.load(dt_bias_ptr + head))
    decay = tl.cumsum(tl.where(is_token, log_decay, 0.0), axis=0)  # [CHUNK]
    tl.store(decays_ptr + tokens * NUM_HEADS + head, decay, mask=is_token)
    tl.store(key_scales_ptr + tokens * NUM_HEADS + head, key_scale, mask=is_token)

    products = tl.dot(key, tl.trans(key), input_precision="ieee")  # [CHUNK, CHUNK]
    is_before = rows[:, None] > rows[None, :]
    # Masked before the exponential, which would overflow above the diagonal.
    between = tl.exp(tl.where(is_before, decay[:, None] - decay[None, :], 0.0))
    lower = tl.where(is_before, products * between * (beta * key_scale)[:, None] * key_scale[None, :], 0.0)
    inverse = _invert(lower, CHUNK, PRECISION)
    dtype = key.dtype
    cell = tokens * NUM_HEADS + head
    dims = tl.arange(0, BLOCK_K)
    of_keys = (inverse * (beta * tl.exp(decay) * key_scale)[None, :]).to(dtype)
    from_state = tl.dot(of_keys, key, input_precision="ieee").to(dtype)  # [CHUNK, BLOCK_K]
    mask = is_token[:, None] & (dims < KEY_DIM)[None, :]
    tl.store(from_state_ptr + cell[:, None] * KEY_DIM + dims[None, :], from_state, mask=mask)
    of_values = (inverse * beta[None, :]).to(dtype)
    value_ptr += head * VALUE_DIM
    for first in range(0, VALUE_DIM, TILE_V):
        value = _load_rows(value_ptr, start, num_tokens, stride_value, first, VALUE_DIM, CHUNK, TILE_V)
        corrections = tl.dot(of_values, value, input_precision="ieee").to(dtype)  # [CHUNK, TILE_V]
        values = first + tl.arange(0, TILE_V)
        of_head = is_token[:, None] & (values < VALUE_DIM)[None, :]
        tl.store(corrections_ptr + cell[:, None] * VALUE_DIM + values[None, :], corrections, mask=of_head)


@triton.jit(do_not_specialize=["first_seq"])
def scan_chunks_kernel(
    key_ptr,
    state_ptr,
    read_slots_ptr,
    write_slots_ptr,
    query_start_loc_ptr,
    row_counts_ptr,
    decays_ptr,
    key_scales_ptr,
    from_state_ptr,
    corrections_ptr,
    states_ptr,
    first_seq,
    stride_key,
    stride_state,
    NUM_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE_V: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Grid: (cdiv(VALUE_DIM, TILE_V), NUM_HEADS, num_seqs - first_seq); one program takes TILE_V columns of one head of
    a sequence from its state to the one after its last chunk.

    Leaves in states [num_chunks, NUM_HEADS, KEY_DIM, VALUE_DIM] the state before each chunk, and completes corrections.
    With row_counts_ptr first_seq is read there, and the sequences of the programs that are too many are not scanned.
    """
    first = tl.program_id(0) * TILE_V
    head = tl.program_id(1)
    seq = first_seq + tl.program_id(2)
    if row_counts_ptr is not None:
        first_seq = tl.load(row_counts_ptr + 1).to(tl.int32)
        seq = first_seq + tl.program_id(2)
        if seq >= tl.load(row_counts_ptr):
            return
    start = tl.load(query_start_loc_ptr + seq)
    end = tl.load(query_start_loc_ptr + seq + 1)
    if start >= end:
        return
    keys, values = tl.arange(0, BLOCK_K), first + tl.arange(0, TILE_V)
    cells = head * (KEY_DIM * VALUE_DIM) + keys[:, None] * VALUE_DIM + values[None, :]
    is_cell = (keys < KEY_DIM)[:, None] & (values < VALUE_DIM)[None, :]
    read = tl.load(read_slots_ptr + seq).to(tl.int64)
    is_read = (keys < tl.where(read >= 0, KEY_DIM, 0))[:, None] & (values < VALUE_DIM)[None, :]
    state = tl.load(state_ptr + read * stride_state + cells, mask=is_read, other=0.0)  # [BLOCK_K, TILE_V]
    # The number of the sequence's first chunk, as find_sequence counts.
    index = (start - tl.load(query_start_loc_ptr + first_seq)) // CHUNK + seq - first_seq
    states_ptr += index.to(tl.int64) * (NUM_HEADS * KEY_DIM * VALUE_DIM)
    key_ptr += head // GROUP_SIZE * KEY_DIM
    dtype = states_ptr.dtype.element_ty
    rows = tl.arange(0, CHUNK)
    for chunk_start in range(start, end, CHUNK):
        num_tokens = tl.minimum(end - chunk_start, CHUNK)
        is_token = rows < num_tokens
        token_heads = (chunk_start + rows).to(tl.int64) * NUM_HEADS + head  # [CHUNK]
        narrow_state = state.to(dtype)
        tl.store(states_ptr + cells, narrow_state, mask=is_cell)
        states_ptr += NUM_HEADS * KEY_DIM * VALUE_DIM
        mask = is_token[:, None] & (keys < KEY_DIM)[None, :]
        from_state = tl.load(from_state_ptr + token_heads[:, None] * KEY_DIM + keys[None, :], mask=mask, other=0.0)
        key = _load_rows(key_ptr, chunk_start, num_tokens, stride_key, 0, KEY_DIM, CHUNK, BLOCK_K)  # [CHUNK, BLOCK_K]
        decay = tl.load(decays_ptr + token_heads, mask=is_token, other=0.0)  # [CHUNK]
        key_scale = tl.load(key_scales_ptr + token_heads, mask=is_token, other=0.0)  # [CHUNK]
        last = (chunk_start + num_tokens - 1).to(tl.int64)
        whole_decay = tl.load(decays_ptr + last * NUM_HEADS + head)
        correction_ptrs = corrections_ptr + token_heads[:, None] * VALUE_DIM + values[None, :]
        mask = is_token[:, None] & (values < VALUE_DIM)[None, :]
        corrections = tl.load(correction_ptrs, mask=mask, other=0.0).to(tl.float32)  # [CHUNK, TILE_V]
        corrections -= tl.dot(from_state, narrow_state, input_precision="ieee")
        tl.store(correction_ptrs, corrections.to(dtype), mask=mask)
        weights = tl.where(is_token, tl.exp(whole_decay - decay) * key_scale, 0.0)
        added = (corrections * weights[:, None]).to(dtype)
        state = tl.dot(tl.trans(key), added, state * tl.exp(whole_decay), input_precision="ieee")
    write = tl.load(write_slots_ptr + seq).to(tl.int64)
    tl.store(state_ptr + write * stride_state + cells, state, mask=is_cell)


@triton.jit(do_not_specialize=["first_seq", "num_seqs"])
def read_chunks_kernel(
    query_ptr,
    key_ptr,
    gate_ptr,
    norm_weight_ptr,
    query_start_loc_ptr,
    row_counts_ptr,
    decays_ptr,
    key_scales_ptr,
    corrections_ptr,
    states_ptr,
    out_ptr,
    eps,
    first_seq,
    num_seqs,
    stride_query,
    stride_key,
    stride_gate,
    NUM_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr,
    NORM_EPS: tl.constexpr,
):
    """Grid: (NUM_HEADS, num_chunks), as prepare_chunks_kernel's; one program reads the states of one head after each
    token of a chunk, normalises and gates what it reads."""
    head = tl.program_id(0)
    index = tl.program_id(1)
    start, num_tokens = _find_chunk(query_start_loc_ptr, row_counts_ptr, index, first_seq, num_seqs, CHUNK)
    if num_tokens <= 0:
        return
    rows, keys, values = tl.arange(0, CHUNK), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    is_token = rows < num_tokens
    token_heads = (start + rows).to(tl.int64) * NUM_HEADS + head  # [CHUNK]
    key_head = head // GROUP_SIZE * KEY_DIM
    query = _load_rows(query_ptr + key_head, start, num_tokens, stride_query, 0, KEY_DIM, CHUNK, BLOCK_K)
    key = _load_rows(key_ptr + key_head, start, num_tokens, stride_key, 0, KEY_DIM, CHUNK, BLOCK_K)  # [CHUNK, BLOCK_K]
    decay = tl.load(decays_ptr + token_heads, mask=is_token, other=0.0)  # [CHUNK]
    key_scale = tl.load(key_scales_ptr + token_heads, mask=is_token, other=0.0)  # [CHUNK]
    dtype = key.dtype
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * key_scale[None, :]  # [CHUNK, CHUNK]
    is_seen = (rows[:, None] >= rows[None, :]) & is_token[:, None]
    between = tl.exp(tl.where(is_seen, decay[:, None] - decay[None, :], 0.0))
    scores = tl.where(is_seen, scores * between, 0.0).to(dtype)
    states_ptr += (index * NUM_HEADS + head).to(tl.int64) * (KEY_DIM * VALUE_DIM)
    is_value = values < VALUE_DIM
    is_cell = (keys < KEY_DIM)[:, None] & is_value[None, :]
    state = tl.load(states_ptr + keys[:, None] * VALUE_DIM + values[None, :], mask=is_cell, other=0.0)
    y = tl.dot(query, state, input_precision="ieee") * tl.exp(decay)[:, None]  # [CHUNK, BLOCK_V]
    mask = is_token[:, None] & is_value[None, :]
    out_offsets = token_heads[:, None] * VALUE_DIM + values[None, :]
    corrections = tl.load(corrections_ptr + out_offsets, mask=mask, other=0.0)
    y = tl.dot(scores, corrections, y, input_precision="ieee")
    wide_query = query.to(tl.float32)
    y *= (tl.rsqrt(tl.sum(wide_query * wide_query, axis=1) + NORM_EPS) * KEY_DIM**-0.5)[:, None]

    weight = tl.load(norm_weight_ptr + values, mask=is_value, other=0.0).to(tl.float32)  # [BLOCK_V]
    y *= tl.rsqrt(tl.sum(y * y, axis=1) / VALUE_DIM + eps)[:, None] * weight[None, :]
    gate = _load_rows(gate_ptr + head * VALUE_DIM, start, num_tokens, stride_gate, 0, VALUE_DIM, CHUNK, BLOCK_V)
    gate = gate.to(tl.float32)
    tl.store(out_ptr + out_offsets, (y * gate * sigmoid(gate)).to(dtype), mask=mask)
