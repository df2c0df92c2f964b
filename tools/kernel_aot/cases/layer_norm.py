"""Ahead-of-time cases of layer_norm's kernels."""

from pagewire_kernels.gpu.row_tile import row_tile
from pagewire_kernels.layer_norm import triton as kernels

from kernel_aot.case import AotCase

PREFIX = "layer_norm"


def _aot_case(name: str, width: int, has_residual: bool) -> AotCase:
    pointers = ("x_ptr", "residual_ptr", "weight_ptr", "bias_ptr", "out_ptr", "total_ptr")
    tile = row_tile(width)
    return AotCase(
        name,
        kernels.layer_norm_kernel,
        dict.fromkeys(pointers, "*bf16") | {"num_rows": "i32", "stride_row": "i32", "eps": "fp32"},
        {
            "WIDTH": width,
            "HAS_RESIDUAL": has_residual,
            "HAS_BIAS": True,
            "ROWS": tile.rows,
            "COLUMNS": tile.columns,
        },
        num_warps=tile.num_warps,
        divisible=("stride_row",),
    )


AOT_CASES = (
    _aot_case("hidden768-bf16", 768, has_residual=True),
    _aot_case("hidden4096-bf16", 4096, has_residual=True),
    _aot_case("hidden4096-alone-bf16", 4096, has_residual=False),
)
