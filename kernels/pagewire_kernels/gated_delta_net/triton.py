"""gated_delta_net on a GPU: one launch for decodes, three for prompts."""

from dataclasses import dataclass, replace
from functools import cache

import torch
import triton

from pagewire_kernels.gated_delta_net.inputs import NORM_EPS, DeltaInputs
from pagewire_kernels.gated_delta_net.triton_chunks import (
    prepare_chunks_kernel,
    read_chunks_kernel,
    scan_chunks_kernel,
)
from pagewire_kernels.gated_delta_net.triton_decode import delta_decode_kernel
from pagewire_kernels.gpu.dependent_launch import launch_options

CHUNK = 64
"""Tokens of a chunk: the square matrix of a chunk grows with it, the states that are written down shrink."""
_DECODE_ROWS = 128
"""Rows of a state that a program of the decode kernel holds at a time: all of them, so that it reads them once."""
_MIN_NARROW_DIM = 64
"""Dimensions of a key and of a value from which on products are made of 16-bit numbers. With fewer, Triton 3.6 compiles
chunks to wrong code on Hopper, which also reads memory that is not theirs; in float32 the same source is right."""
_SCAN_COLUMNS = 32
"""Columns of a state that a program of the scan takes: one sequence of 32 heads of 128 columns occupies 128
multiprocessors."""


@dataclass(frozen=True, slots=True)
class Scratch:
    """What the launches of a prompt hand on, by token and head; the states by chunk. Uninitialised."""

    decays: torch.Tensor
    """[num_tokens, num_heads] float32."""
    key_scales: torch.Tensor
    """[num_tokens, num_heads] float32."""
    from_state: torch.Tensor
    """[num_tokens, num_heads, key_dim], query's dtype."""
    corrections: torch.Tensor
    """[num_tokens, num_heads, value_dim], query's dtype."""
    states: torch.Tensor
    """[num_chunks, num_heads, key_dim, value_dim], query's dtype."""

    @classmethod
    def empty(cls, inputs: DeltaInputs, num_chunks: int) -> "Scratch":
        """For all tokens of a batch."""
        num_tokens, num_heads, value_dim = inputs.value.shape
        dtype, device = inputs.query.dtype, inputs.query.device
        return cls(
            torch.empty((num_tokens, num_heads), dtype=torch.float32, device=device),
            torch.empty((num_tokens, num_heads), dtype=torch.float32, device=device),
            torch.empty((num_tokens, num_heads, inputs.key_dim), dtype=dtype, device=device),
            torch.empty((num_tokens, num_heads, value_dim), dtype=dtype, device=device),
            torch.empty((num_chunks, num_heads, inputs.key_dim, value_dim), dtype=dtype, device=device),
        )


def gated_delta_net(inputs: DeltaInputs) -> torch.Tensor:
    """See the package. Launches depend on shapes and plain numbers alone: they can be captured in a graph."""
    if inputs.query.element_size() < 4 and min(inputs.key_dim, inputs.value_dim) < _MIN_NARROW_DIM:
        wide = {name: getattr(inputs, name).float() for name in ("query", "key", "value", "gate")}
        return gated_delta_net(replace(inputs, **wide)).to(inputs.query.dtype)
    out = torch.empty(inputs.value.shape, dtype=inputs.query.dtype, device=inputs.query.device)
    num_tokens, num_seqs, num_decodes = inputs.query.shape[0], inputs.read_slots.shape[0], inputs.num_decodes
    if num_tokens == 0 or num_seqs == 0:
        return out
    if inputs.max_query_len == 1:
        num_decodes = num_seqs
    elif inputs.row_counts is not None:
        # Which sequences are decodes is known on the device alone: all launches are made for as many as there can be.
        _run_decodes(inputs, out, min(num_seqs, num_tokens))
        _run_chunks(inputs, out, 0)
        return out
    if not 0 <= num_decodes <= min(num_seqs, num_tokens):
        raise ValueError(f"{num_decodes} decodes in a batch of {num_seqs} sequences and {num_tokens} tokens")
    if num_decodes:
        _run_decodes(inputs, out, num_decodes)
    if num_decodes < num_seqs:
        _run_chunks(inputs, out, num_decodes)
    return out


def _run_decodes(inputs: DeltaInputs, out: torch.Tensor, num_decodes: int) -> None:
    """Advances the first num_decodes sequences: token i is sequence i's one new token."""
    constants = decode_constants(*_dims(inputs))
    delta_decode_kernel[(inputs.num_heads, num_decodes)](
        inputs.query,
        inputs.key,
        inputs.value,
        inputs.beta_logits,
        inputs.decay_logits,
        inputs.a_log,
        inputs.dt_bias,
        inputs.gate,
        inputs.norm_weight,
        inputs.state,
        inputs.read_slots,
        inputs.write_slots,
        inputs.row_counts,
        out,
        inputs.eps,
        inputs.beta_scale,
        num_decodes,
        inputs.query.stride(0),
        inputs.key.stride(0),
        inputs.value.stride(0),
        inputs.beta_logits.stride(0),
        inputs.decay_logits.stride(0),
        inputs.gate.stride(0),
        inputs.state.stride(0),
        **constants,
        NORM_EPS=NORM_EPS,
        **launch_options(inputs.query.device),
        num_warps=decode_warps(constants),
    )


def _dims(inputs: DeltaInputs) -> tuple[int, int, int, int]:
    return inputs.num_heads, inputs.num_key_heads, inputs.key_dim, inputs.value_dim


def _run_chunks(inputs: DeltaInputs, out: torch.Tensor, first_seq: int) -> None:
    """Advances the sequences from first_seq on; those before it have a token each."""
    num_tokens, num_seqs = inputs.query.shape[0], inputs.read_slots.shape[0]
    num_chunks = (num_tokens - first_seq) // CHUNK + num_seqs - first_seq
    dims = _dims(inputs)
    scratch = Scratch.empty(inputs, num_chunks)
    device_counts = inputs.query_start_loc, inputs.row_counts
    prepare_chunks_kernel[(inputs.num_heads, num_chunks)](
        inputs.key,
        inputs.value,
        inputs.beta_logits,
        inputs.decay_logits,
        inputs.a_log,
        inputs.dt_bias,
        *device_counts,
        scratch.decays,
        scratch.key_scales,
        scratch.from_state,
        scratch.corrections,
        inputs.beta_scale,
        first_seq,
        num_seqs,
        inputs.key.stride(0),
        inputs.value.stride(0),
        inputs.beta_logits.stride(0),
        inputs.decay_logits.stride(0),
        **prepare_constants(*dims),
        NORM_EPS=NORM_EPS,
        PRECISION=precision(inputs.query.element_size()),
        num_warps=4,
    )
    _scan_chunks(inputs, scratch, first_seq)
    read = read_constants(*dims)
    read_chunks_kernel[(inputs.num_heads, num_chunks)](
        inputs.query,
        inputs.key,
        inputs.gate,
        inputs.norm_weight,
        *device_counts,
        scratch.decays,
        scratch.key_scales,
        scratch.corrections,
        scratch.states,
        out,
        inputs.eps,
        first_seq,
        num_seqs,
        inputs.query.stride(0),
        inputs.key.stride(0),
        inputs.gate.stride(0),
        **read,
        NORM_EPS=NORM_EPS,
        num_warps=read_warps(read),
    )


def _scan_chunks(inputs: DeltaInputs, scratch: Scratch, first_seq: int) -> None:
    """Writes the states before all chunks, and those of the write slots."""
    constants = scan_constants(*_dims(inputs))
    num_tiles = triton.cdiv(inputs.value_dim, constants["TILE_V"])
    scan_chunks_kernel[(num_tiles, inputs.num_heads, inputs.read_slots.shape[0] - first_seq)](
        inputs.key,
        inputs.state,
        inputs.read_slots,
        inputs.write_slots,
        inputs.query_start_loc,
        inputs.row_counts,
        scratch.decays,
        scratch.key_scales,
        scratch.from_state,
        scratch.corrections,
        scratch.states,
        first_seq,
        inputs.key.stride(0),
        inputs.state.stride(0),
        **constants,
        num_warps=4,
        num_stages=3,
    )


@cache
def decode_constants(num_heads: int, num_key_heads: int, key_dim: int, value_dim: int) -> dict[str, int]:
    """Returns the decode kernel's constants that depend on shapes."""
    shape = _shape(num_heads, num_key_heads, key_dim, value_dim)
    return shape | {"BLOCK_V": _block(value_dim), "TILE_K": min(_DECODE_ROWS, shape["BLOCK_K"])}


@cache
def prepare_constants(num_heads: int, num_key_heads: int, key_dim: int, value_dim: int) -> dict[str, int]:
    """Returns the constants of prepare_chunks_kernel that depend on shapes."""
    tile = {"TILE_V": min(128, _block(value_dim)), "CHUNK": CHUNK}
    return _shape(num_heads, num_key_heads, key_dim, value_dim) | tile


@cache
def scan_constants(num_heads: int, num_key_heads: int, key_dim: int, value_dim: int) -> dict[str, int]:
    """Returns the constants of scan_chunks_kernel that depend on shapes."""
    tile = {"TILE_V": min(_SCAN_COLUMNS, _block(value_dim)), "CHUNK": CHUNK}
    return _shape(num_heads, num_key_heads, key_dim, value_dim) | tile


@cache
def read_constants(num_heads: int, num_key_heads: int, key_dim: int, value_dim: int) -> dict[str, int]:
    """Returns the constants of read_chunks_kernel that depend on shapes."""
    tile = {"BLOCK_V": _block(value_dim), "CHUNK": CHUNK}
    return _shape(num_heads, num_key_heads, key_dim, value_dim) | tile


def precision(element_size: int) -> str:
    """Returns how a chunk's matrix is inverted: what is made of it is rounded to the elements of the model."""
    return "tf32" if element_size == 2 else "ieee"


def decode_warps(constants: dict[str, int]) -> int:
    """Returns the warps of a program of the decode kernel: 128 numbers of a state for each thread."""
    return min(16, max(1, constants["TILE_K"] * constants["BLOCK_V"] // 4096))


def read_warps(constants: dict[str, int]) -> int:
    """Returns the warps of a program of read_chunks_kernel, whose sums are CHUNK x BLOCK_V."""
    return 4 if constants["BLOCK_V"] <= 128 else 8


def _shape(num_heads: int, num_key_heads: int, key_dim: int, value_dim: int) -> dict[str, int]:
    return {
        "NUM_HEADS": num_heads,
        "GROUP_SIZE": num_heads // num_key_heads,
        "KEY_DIM": key_dim,
        "VALUE_DIM": value_dim,
        "BLOCK_K": _block(key_dim),
    }


def _block(dim: int) -> int:
    # tl.dot takes at least 16 rows and columns.
    return max(16, 1 << (dim - 1).bit_length())
