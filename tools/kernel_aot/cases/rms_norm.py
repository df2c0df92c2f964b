"""Ahead-of-time cases of rms_norm's kernels."""

from pagewire_kernels.gpu.row_tile import row_tile
from pagewire_kernels.rms_norm import triton as kernels

from kernel_aot.case import AotCase

PREFIX = "rms_norm"


def _aot_case(name: str, width: int, has_residual: bool, num_inner: int = 1) -> AotCase:
    pointers = ("x_ptr", "residual_ptr", "weight_ptr", "out_ptr", "total_ptr")
    tile = row_tile(width)
    signature = dict.fromkeys(pointers, "*bf16") | {"num_rows": "i32", "stride_outer": "i32", "eps": "fp32"}
    constexprs: dict[str, object] = {"WIDTH": width, "HAS_RESIDUAL": has_residual}
    constexprs |= {"ROWS": tile.rows, "COLUMNS": tile.columns}
    if num_inner == 1:
        constexprs |= {"num_inner": 1}
        signature |= {"stride_inner": "i32"}
    else:
        signature |= {"num_inner": "i32", "stride_inner": "i32"}
    divisible = ("stride_outer", "stride_inner")
    return AotCase(name, kernels.rms_norm_kernel, signature, constexprs, num_warps=tile.num_warps, divisible=divisible)


AOT_CASES = (
    _aot_case("hidden2048-bf16", 2048, has_residual=True),
    _aot_case("hidden4096-bf16", 4096, has_residual=True),
    _aot_case("hidden8192-bf16", 8192, has_residual=True),
    _aot_case("hidden4096-alone-bf16", 4096, has_residual=False),
    _aot_case("heads128-bf16", 128, has_residual=False, num_inner=32),
)
