"""Ahead-of-time cases of gated_rms_norm's kernel."""

from pagewire_kernels.gated_rms_norm import triton as kernels
from pagewire_kernels.gpu.row_tile import row_tile

from kernel_aot.case import AotCase

PREFIX = "gated_rms_norm"


def _aot_case(name: str, num_groups: int, group_size: int, *, norm_first: bool, shared: bool = False) -> AotCase:
    tile, strides = row_tile(group_size), ("stride_x", "stride_gate")
    signature = dict.fromkeys(("x_ptr", "gate_ptr", "weight_ptr", "out_ptr"), "*bf16")
    signature |= dict.fromkeys(("num_rows", *strides), "i32") | {"eps": "fp32"}
    constexprs = {
        "NUM_GROUPS": num_groups,
        "GROUP_SIZE": group_size,
        "SHARED_WEIGHT": shared,
        "NORM_FIRST": norm_first,
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
    }
    kernel = kernels.gated_rms_norm_kernel
    return AotCase(name, kernel, signature, constexprs, num_warps=tile.num_warps, divisible=strides)


AOT_CASES = (
    _aot_case("groups8-of-1024-bf16", 8, 1024, norm_first=False),
    _aot_case("groups1-of-8192-bf16", 1, 8192, norm_first=False, shared=True),
    _aot_case("heads32-of-128-first-bf16", 32, 128, norm_first=True, shared=True),
)
