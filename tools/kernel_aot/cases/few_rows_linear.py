"""Ahead-of-time cases of few_rows_linear's kernels."""

from pagewire_kernels.few_rows_linear import triton as kernels
from pagewire_kernels.tuning.few_rows_linear import FewRowsTile, few_rows_config

from kernel_aot.case import TARGETS, AotCase

PREFIX = "few_rows_linear"


def _aot_case(name: str, shape: tuple[int, int], gated: bool, rows: int, target: int) -> AotCase:
    chosen = few_rows_config(target, 2, gated, rows, *shape).tile
    tile = chosen if isinstance(chosen, FewRowsTile) else kernels._ONE_ROW if rows == 1 else kernels._ANY_ROWS
    return AotCase(
        f"{name}-{rows}rows-sm{target}",
        kernels.few_rows_linear_kernel,
        {
            **dict.fromkeys(("x_ptr", "weight_ptr", "bias_ptr", "out_ptr"), "*bf16"),
            **dict.fromkeys(("num_rows", "num_columns", "stride_x"), "i32"),
        },
        kernels._constants(shape[1], rows, gated, False, tile),
        num_warps=tile.num_warps,
        divisible=("stride_x",),
        targets=(target,),
    )


AOT_CASES = tuple(
    _aot_case(name, shape, gated, rows, target)
    for target in TARGETS
    for name, shape, gated in (
        ("qkv-llama-8b", (6144, 4096), False),
        ("gate-up-llama-8b", (28_672, 4096), True),
        ("down-llama-8b", (4096, 14_336), False),
    )
    for rows in (1, 4, 16)
)
