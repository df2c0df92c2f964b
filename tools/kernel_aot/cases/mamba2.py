"""Ahead-of-time cases of mamba2's kernels."""

import torch
from pagewire_kernels.mamba2 import triton as kernels

from kernel_aot.case import AotCase

PREFIX = "mamba2"
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_STRIDES = ("stride_x", "stride_dt", "stride_b", "stride_c", "stride_gate", "stride_slot")


def _signature(dtype: str) -> dict[str, str]:
    signature = dict.fromkeys(("x_ptr", "dt_ptr", "b_ptr", "c_ptr", "out_ptr"), f"*{dtype}")
    signature |= dict.fromkeys(("decay_ptr", "skip_ptr", "dt_bias_ptr", "state_ptr"), "*fp32")
    signature |= dict.fromkeys(("read_slots_ptr", "write_slots_ptr"), "*i32") | dict.fromkeys(_STRIDES, "i32")
    return signature | {"dt_min": "fp32", "dt_max": "fp32"}


def _optional(signature: dict[str, str], dtype: str, gate: bool, row_counts: bool) -> dict[str, object]:
    """Adds the pointers that are given to the signature; returns the others as constants."""
    given = {"gate_ptr": f"*{dtype}"} if gate else {}
    given |= {"row_counts_ptr": "*i64"} if row_counts else {}
    signature |= given
    return dict.fromkeys({"gate_ptr", "row_counts_ptr"} - set(given))


def _decode(
    name: str, shape: tuple[int, int, int, int], *, dtype: str = "bf16", gate: bool = False, row_counts: bool = False
) -> AotCase:
    signature = _signature(dtype) | {"num_decodes": "i32"}
    constants = _optional(signature, dtype, gate, row_counts) | kernels.decode_constants(*shape)
    return AotCase(f"decode-{name}", kernels.mamba2_decode_kernel, signature, constants, divisible=_STRIDES)


def _prefill(
    name: str, shape: tuple[int, int, int, int], *, dtype: str = "bf16", gate: bool = False, row_counts: bool = False
) -> AotCase:
    signature = _signature(dtype) | {"query_start_loc_ptr": "*i32", "first_seq": "i32", "num_seqs": "i32"}
    constants = _optional(signature, dtype, gate, row_counts)
    config = kernels.prefill_config(_DTYPES[dtype])
    constants |= kernels.prefill_constants(config, *shape)
    return AotCase(
        f"prefill-{name}",
        kernels.mamba2_prefill_kernel,
        signature,
        constants,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        divisible=_STRIDES,
        may_spill=True,  # Heads of 128 with a state of 256 do, and float32; on an A100 others do too, a little.
    )


# num_heads, num_groups, head_dim, state_size
GRANITE, NEMOTRON = (128, 1, 64, 128), (128, 8, 64, 128)
FALCON, ZAMBA = (32, 1, 128, 256), (80, 1, 64, 64)
AOT_CASES = (
    _decode("granite-bf16", GRANITE),
    _decode("nemotron-bf16-row-counts", NEMOTRON, row_counts=True),
    _decode("falcon-bf16-gated", FALCON, gate=True),
    _decode("zamba-bf16", ZAMBA),
    _decode("granite-fp32", GRANITE, dtype="fp32"),
    _prefill("granite-bf16", GRANITE),
    _prefill("nemotron-bf16-row-counts", NEMOTRON, row_counts=True),
    _prefill("falcon-bf16-gated", FALCON, gate=True),
    _prefill("zamba-bf16", ZAMBA),
    _prefill("granite-fp16", GRANITE, dtype="fp16"),
    _prefill("granite-fp32", GRANITE, dtype="fp32"),
)
