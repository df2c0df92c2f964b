"""gated_delta_net on a CPU, float32: token by token, one head of one sequence at a time on each thread.

A chunked form would save little beside the projections and would sum in an order that depends on where chunks begin.
Here a sequence's bits do not depend on the batch or on how a prompt is cut up. Columns of a state do not depend on each
other: a strip of them stays in the first-level cache while all tokens go by.
"""

import math

import numpy as np
import torch
from numba import carray, cfunc, float32, int32, njit

from pagewire_kernels.cpu.simd import make_decayed_update, make_gemm_tile
from pagewire_kernels.cpu.simd_ir import LANES
from pagewire_kernels.cpu.team import FASTMATH, WORKER, float_bits, from_bits, launch, pointer, take
from pagewire_kernels.cpu.threads import team_size
from pagewire_kernels.gated_delta_net.inputs import NORM_EPS, DeltaInputs

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_STRIP = 2 * LANES
"""Columns of a strip: with 128 rows 16 KB."""
_update_state = make_decayed_update(2)
_read_state = make_gemm_tile(2, 2, accumulate=False, num_chains=2)
_TILE = 64
"""Tokens whose keys, queries and factors are made at once."""


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _unit(source, target, scale):
    """Writes source, of length `scale`."""
    square_sum = np.float32(0)
    for i in range(len(source)):
        square_sum += source[i] * source[i]
    factor = np.float32(scale / math.sqrt(square_sum + NORM_EPS))
    for i in range(len(source)):
        target[i] = source[i] * factor


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _gate_token(y, gate, weight, eps):
    """Normalises and gates one head's output."""
    square_sum = np.float32(0)
    for i in range(len(y)):
        square_sum += y[i] * y[i]
    factor = np.float32(1.0 / math.sqrt(square_sum / len(y) + eps))
    for i in range(len(y)):
        y[i] = y[i] * factor * weight[i] * (gate[i] / (np.float32(1) + np.exp(-gate[i])))


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _advance(strip, pairs, factors, values, value_stride, out, out_stride, width):
    """Takes a strip of a state [key_dim, _STRIP], of which `width` columns count, through a tile of tokens.

    pairs: [num_tokens, 2, key_dim], each token's key and query; factors: [num_tokens, 3], its beta, its decay and the
    product of its query and its key.
    """
    key_dim = strip.shape[0]
    products = np.empty((2, _STRIP), np.float32)
    correction = np.zeros(_STRIP, np.float32)
    for token in range(len(factors)):
        beta, decay, query_key = factors[token]
        _read_state(pairs[token].ctypes.data, key_dim, strip.ctypes.data, _STRIP, key_dim, products.ctypes.data, _STRIP)
        value = carray(pointer(values + 4 * token * value_stride, float32), (width,))
        target = carray(pointer(out + 4 * token * out_stride, float32), (width,))
        for j in range(width):
            correction[j] = beta * (value[j] - decay * products[0, j])
            target[j] = decay * products[1, j] + query_key * correction[j]
        _update_state(pairs[token].ctypes.data, correction.ctypes.data, strip.ctypes.data, key_dim, decay)


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _move_state(strips, cells, is_load):
    """Copies a state, cells [key_dim, value_dim], to strips or from them."""
    num_strips, (key_dim, value_dim) = len(strips), cells.shape
    for i in range(key_dim):
        for s in range(num_strips):
            for j in range(min(_STRIP, value_dim - s * _STRIP)):
                if is_load:
                    strips[s, i, j] = cells[i, s * _STRIP + j]
                else:
                    cells[i, s * _STRIP + j] = strips[s, i, j]


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _prepare_token(key, query, pair, factor, beta, decay):
    """Makes what _advance takes of one token; key and query are addresses."""
    key_dim = pair.shape[1]
    _unit(carray(pointer(key, float32), (key_dim,)), pair[0], 1.0)
    _unit(carray(pointer(query, float32), (key_dim,)), pair[1], 1.0 / math.sqrt(key_dim))
    query_key = np.float32(0)
    for i in range(key_dim):
        query_key += pair[0, i] * pair[1, i]
    factor[0], factor[1], factor[2] = beta, decay, query_key


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def _decay(logit, a_log):
    """What a state is multiplied by; logit: with dt_bias."""
    softplus = logit if logit > np.float32(20) else np.log1p(np.exp(logit))
    return np.exp(-np.exp(a_log) * softplus)


@cfunc(WORKER, fastmath=FASTMATH, error_model="numpy", cache=True)
def _worker(args):
    a = carray(args, (31,))
    num_seqs, num_heads, group_size, key_dim, value_dim = a[1], a[2], a[3], a[4], a[5]
    query, key, value, gate, out, weight = a[6], a[7], a[8], a[9], a[10], a[11]
    query_stride, key_stride, value_stride, gate_stride = a[12], a[13], a[14], a[15]
    beta_logits, beta_stride, decay_logits, decay_stride, a_log, dt_bias = a[16], a[17], a[18], a[19], a[20], a[21]
    state, slot_stride, read_slots, write_slots, query_start_loc = a[22], a[23], a[24], a[25], a[26]
    eps, beta_scale, num_items = from_bits(a[27]), np.float32(from_bits(a[28])), a[29]
    starts = carray(pointer(query_start_loc, int32), (num_seqs + 1,))
    reads, writes = carray(pointer(read_slots, int32), (num_seqs,)), carray(pointer(write_slots, int32), (num_seqs,))
    rates, biases = carray(pointer(a_log, float32), (num_heads,)), carray(pointer(dt_bias, float32), (num_heads,))
    norm_weight = carray(pointer(weight, float32), (value_dim,))
    num_strips = (value_dim + _STRIP - 1) // _STRIP
    # Zeroed, because columns beyond value_dim are computed too, though their results are not used.
    strips = np.zeros((num_strips, key_dim, _STRIP), np.float32)
    pairs, factors = np.empty((_TILE, 2, key_dim), np.float32), np.empty((_TILE, 3), np.float32)
    cells = key_dim * value_dim
    while True:
        item = take(args, 1)
        if item >= num_items:
            break
        seq, head = item // num_heads, item % num_heads
        begin, end = int(starts[seq]), int(starts[seq + 1])
        if begin == end:
            continue
        read, write = np.int64(reads[seq]), np.int64(writes[seq])
        if read < 0:
            strips[:] = 0
        else:
            old = state + 4 * (read * slot_stride + head * cells)
            _move_state(strips, carray(pointer(old, float32), (key_dim, value_dim)), True)
        key_head = head // group_size * key_dim
        for first in range(begin, end, _TILE):
            num_tokens = min(_TILE, end - first)
            for i in range(num_tokens):
                token = first + i
                beta_logit = carray(pointer(beta_logits + 4 * (token * beta_stride + head), float32), (1,))[0]
                decay_logit = carray(pointer(decay_logits + 4 * (token * decay_stride + head), float32), (1,))[0]
                _prepare_token(
                    key + 4 * (token * key_stride + key_head),
                    query + 4 * (token * query_stride + key_head),
                    pairs[i],
                    factors[i],
                    beta_scale / (np.float32(1) + np.exp(-beta_logit)),
                    _decay(decay_logit + biases[head], rates[head]),
                )
            for s in range(num_strips):
                _advance(
                    strips[s],
                    pairs,
                    factors[:num_tokens],
                    value + 4 * (first * value_stride + head * value_dim + s * _STRIP),
                    value_stride,
                    out + 4 * ((first * num_heads + head) * value_dim + s * _STRIP),
                    num_heads * value_dim,
                    min(_STRIP, value_dim - s * _STRIP),
                )
            for i in range(num_tokens):
                row = ((first + i) * num_heads + head) * value_dim
                y = carray(pointer(out + 4 * row, float32), (value_dim,))
                z = gate + 4 * ((first + i) * gate_stride + head * value_dim)
                _gate_token(y, carray(pointer(z, float32), (value_dim,)), norm_weight, eps)
        new = state + 4 * (write * slot_stride + head * cells)
        _move_state(strips, carray(pointer(new, float32), (key_dim, value_dim)), False)


_ADDRESS: int = _worker.address


def gated_delta_net(inputs: DeltaInputs) -> torch.Tensor:
    """See the package; float32."""
    integers = inputs.read_slots, inputs.write_slots, inputs.query_start_loc
    if any(each.dtype is not torch.int32 or not each.is_contiguous() for each in integers):
        raise ValueError("slots and query_start_loc must be contiguous and int32")
    tensors = inputs.state, inputs.a_log, inputs.dt_bias
    if any(each.dtype is not torch.float32 for each in tensors):
        raise ValueError("state, a_log and dt_bias must be float32")
    out = torch.empty(inputs.value.shape)
    num_tokens, num_heads, value_dim = inputs.value.shape
    num_seqs = inputs.read_slots.shape[0]
    args = (
        num_seqs,
        num_heads,
        num_heads // inputs.num_key_heads,
        inputs.key_dim,
        value_dim,
        inputs.query.data_ptr(),
        inputs.key.data_ptr(),
        inputs.value.data_ptr(),
        inputs.gate.data_ptr(),
        out.data_ptr(),
        inputs.norm_weight.data_ptr(),
        inputs.query.stride(0),
        inputs.key.stride(0),
        inputs.value.stride(0),
        inputs.gate.stride(0),
        inputs.beta_logits.data_ptr(),
        inputs.beta_logits.stride(0),
        inputs.decay_logits.data_ptr(),
        inputs.decay_logits.stride(0),
        inputs.a_log.data_ptr(),
        inputs.dt_bias.data_ptr(),
        inputs.state.data_ptr(),
        inputs.state.stride(0),
        inputs.read_slots.data_ptr(),
        inputs.write_slots.data_ptr(),
        inputs.query_start_loc.data_ptr(),
        float_bits(inputs.eps),
        float_bits(inputs.beta_scale),
        num_seqs * num_heads,
    )
    launch(_ADDRESS, team_size(num_tokens * num_heads * inputs.key_dim * value_dim), args)
    return out
