"""Ahead-of-time cases of paged_attention's kernels of triton_combine.py."""

import triton
from pagewire_kernels.paged_attention import triton_combine as kernels

from kernel_aot.case import AotCase

PREFIX = "paged_attention/combine"


def _aot_case(name: str, head_dim: int, group_size: int, has_sinks: bool = False, row_counts: bool = False) -> AotCase:
    block_g, block_d = triton.next_power_of_2(group_size), max(16, triton.next_power_of_2(head_dim))
    constants: dict[str, object] = {**kernels._constants(8, group_size, head_dim, block_g, block_d)}
    signature = {"sums_ptr": "*fp32", "stats_ptr": "*fp32", "splits_ptr": "*i32", "out_ptr": "*bf16"}
    signature["heads_per_program"] = "i32"
    if has_sinks:
        signature["sinks_ptr"] = "*fp32"
    else:
        constants["sinks_ptr"] = None
    if row_counts:
        signature["row_counts_ptr"] = "*i64"
    else:
        constants["row_counts_ptr"] = None
    return AotCase(name, kernels.combine_splits_kernel, signature, constants, num_warps=kernels._NUM_WARPS)


AOT_CASES = (
    _aot_case("head128-bf16-group4", 128, 4),
    _aot_case("head128-bf16-group4-row-counts", 128, 4, row_counts=True),
    _aot_case("head64-bf16-group4", 64, 4),
    _aot_case("head256-bf16-group7-sinks", 256, 7, has_sinks=True),
)
