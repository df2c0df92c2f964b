"""Decodes of gated_delta_net on a GPU: one launch from the projections to the gated output."""

import triton
import triton.language as tl

from pagewire_kernels.gpu.dependent_launch import release_next, wait_for_previous

# mypy: disable-error-code="no-untyped-def, no-untyped-call"


@triton.jit
def log_decay_of(logits, a_log, dt_bias):
    """The logarithm of what a state is multiplied by, at most 0."""
    x = logits.to(tl.float32) + dt_bias
    return -tl.exp(a_log) * tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(x)))


@triton.jit
def sigmoid(x):
    """In float32."""
    return 1.0 / (1.0 + tl.exp(-x.to(tl.float32)))


@triton.jit(do_not_specialize=["num_decodes"])
def delta_decode_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    beta_logits_ptr,
    decay_logits_ptr,
    a_log_ptr,
    dt_bias_ptr,
    gate_ptr,
    norm_weight_ptr,
    state_ptr,
    read_slots_ptr,
    write_slots_ptr,
    row_counts_ptr,
    out_ptr,
    eps,
    beta_scale,
    num_decodes,
    stride_query,
    stride_key,
    stride_value,
    stride_beta,
    stride_decay,
    stride_gate,
    stride_state,
    NUM_HEADS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    TILE_K: tl.constexpr,
    NORM_EPS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (NUM_HEADS, num_decodes); one program advances one head of the sequence whose one new token has its number.

    The state is read once from memory and written once. With row_counts_ptr num_decodes is the most that there can be,
    and their number is read there.
    """
    head = tl.program_id(0)
    seq = tl.program_id(1)
    values = tl.arange(0, BLOCK_V)
    is_value = values < VALUE_DIM
    wait_for_previous(PDL)
    if row_counts_ptr is not None:
        num_decodes = tl.load(row_counts_ptr + 1).to(tl.int32)
    if seq >= num_decodes:
        return
    token = seq.to(tl.int64)
    query_ptr += token * stride_query + head // GROUP_SIZE * KEY_DIM
    key_ptr += token * stride_key + head // GROUP_SIZE * KEY_DIM
    dims = tl.arange(0, BLOCK_K)
    query = tl.load(query_ptr + dims, mask=dims < KEY_DIM, other=0.0).to(tl.float32)  # [BLOCK_K]
    key = tl.load(key_ptr + dims, mask=dims < KEY_DIM, other=0.0).to(tl.float32)  # [BLOCK_K]
    query_scale = tl.rsqrt(tl.sum(query * query, axis=0) + NORM_EPS) * KEY_DIM**-0.5
    key_scale = tl.rsqrt(tl.sum(key * key, axis=0) + NORM_EPS)
    query_key = tl.sum(query * key, axis=0) * query_scale * key_scale
    value_offsets = head * VALUE_DIM + values
    value = tl.load(value_ptr + token * stride_value + value_offsets, mask=is_value, other=0.0)  # [BLOCK_V]
    gate = tl.load(gate_ptr + token * stride_gate + value_offsets, mask=is_value, other=0.0).to(tl.float32)
    weight = tl.load(norm_weight_ptr + values, mask=is_value, other=0.0).to(tl.float32)  # [BLOCK_V]
    beta = beta_scale * sigmoid(tl.load(beta_logits_ptr + token * stride_beta + head))
    decay_logit = tl.load(decay_logits_ptr + token * stride_decay + head)
    decay = tl.exp(log_decay_of(decay_logit, tl.load(a_log_ptr + head), tl.load(dt_bias_ptr + head)))

    read = tl.load(read_slots_ptr + seq).to(tl.int64)
    write = tl.load(write_slots_ptr + seq).to(tl.int64)
    num_rows = tl.where(read >= 0, KEY_DIM, 0)
    old_ptr = state_ptr + read * stride_state + head * (KEY_DIM * VALUE_DIM)
    new_ptr = state_ptr + write * stride_state + head * (KEY_DIM * VALUE_DIM)
    # Both reads are of the old state, so that neither waits for the new one.
    by_key = tl.zeros([TILE_K, BLOCK_V], tl.float32)
    by_query = tl.zeros([TILE_K, BLOCK_V], tl.float32)
    for first in range(0, KEY_DIM, TILE_K):
        keys = first + tl.arange(0, TILE_K)
        cells = keys[:, None] * VALUE_DIM + values[None, :]
        state = tl.load(old_ptr + cells, mask=(keys < num_rows)[:, None] & is_value[None, :], other=0.0)
        some_keys = tl.load(key_ptr + keys, mask=keys < KEY_DIM, other=0.0).to(tl.float32)  # [TILE_K]
        some_queries = tl.load(query_ptr + keys, mask=keys < KEY_DIM, other=0.0).to(tl.float32)  # [TILE_K]
        by_key += state * some_keys[:, None]
        by_query += state * some_queries[:, None]
    memory = tl.sum(by_key, axis=0) * (decay * key_scale)  # [BLOCK_V]
    correction = beta * (value.to(tl.float32) - memory)
    y = tl.sum(by_query, axis=0) * (decay * query_scale) + query_key * correction
    release_next(PDL)
    # The state is read again, from the first-level cache: all of it would take too many registers.
    added = key_scale * correction
    for first in range(0, KEY_DIM, TILE_K):
        keys = first + tl.arange(0, TILE_K)
        cells = keys[:, None] * VALUE_DIM + values[None, :]
        state = tl.load(old_ptr + cells, mask=(keys < num_rows)[:, None] & is_value[None, :], other=0.0)
        some_keys = tl.load(key_ptr + keys, mask=keys < KEY_DIM, other=0.0).to(tl.float32)
        mask = (keys < KEY_DIM)[:, None] & is_value[None, :]
        tl.store(new_ptr + cells, state * decay + some_keys[:, None] * added[None, :], mask=mask)
    y = y * tl.rsqrt(tl.sum(y * y, axis=0) / VALUE_DIM + eps) * weight
    out_offsets = (token * NUM_HEADS + head) * VALUE_DIM + values
    tl.store(out_ptr + out_offsets, (y * gate * sigmoid(gate)).to(out_ptr.dtype.element_ty), mask=is_value)
