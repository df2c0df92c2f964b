"""Ahead-of-time cases of activation's kernels."""

from pagewire_kernels.activation import triton as kernels
from pagewire_kernels.gpu.row_tile import row_tile

from kernel_aot.case import AotCase

PREFIX = "activation"


def _aot_case(name: str, width: int, activation: str) -> AotCase:
    tile = row_tile(width, kernels._MAX_COLUMNS)
    return AotCase(
        name,
        kernels.activate_and_mul_kernel,
        {"x_ptr": "*bf16", "out_ptr": "*bf16", "num_rows": "i32", "stride_row": "i32"},
        {"WIDTH": width, "ACTIVATION": activation, "ROWS": tile.rows, "COLUMNS": tile.columns},
        num_warps=tile.num_warps,
        divisible=("stride_row",),
    )


def _xielu_case(name: str, width: int) -> AotCase:
    tile = row_tile(width, kernels._MAX_COLUMNS)
    return AotCase(
        name,
        kernels.xielu_kernel,
        {"x_ptr": "*bf16", "slopes_ptr": "*fp32", "out_ptr": "*bf16", "num_rows": "i32", "stride_row": "i32"},
        {"WIDTH": width, "ROWS": tile.rows, "COLUMNS": tile.columns},
        num_warps=tile.num_warps,
        divisible=("stride_row",),
    )


AOT_CASES = (
    _aot_case("silu14336-bf16", 14336, "silu"),
    _aot_case("silu768-bf16", 768, "silu"),
    _aot_case("gelu8192-bf16", 8192, "gelu"),
    _aot_case("gelu-tanh8192-bf16", 8192, "gelu_tanh"),
    _xielu_case("xielu21504-bf16", 21504),
)
