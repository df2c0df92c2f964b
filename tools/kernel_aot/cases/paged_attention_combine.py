"""Ahead-of-time cases of paged_attention's kernels of triton_combine.py."""

import triton
from pagewire_kernels.paged_attention import triton_combine as kernels

from kernel_aot.case import AotCase

PREFIX = "paged_attention/combine"


def _aot_case(
    name: str,
    head_dim: int,
    group_size: int,
    *,
    has_sinks: bool = False,
    row_counts: bool = False,
    shared: bool = False,
) -> AotCase:
    block_g, block_d = triton.next_power_of_2(group_size), max(16, triton.next_power_of_2(head_dim))
    config = kernels._SHARED if shared else kernels._SPLITS
    constants: dict[str, object] = {**kernels._constants(config, 8, group_size, head_dim, block_g, block_d)}
    signature = {"sums_ptr": "*fp32", "stats_ptr": "*fp32", "splits_ptr": "*i32", "out_ptr": "*bf16"}
    signature |= {"heads_per_program": "i32", "first_shared": "i32"}
    for optional, type_, is_given in (
        ("sinks_ptr", "*fp32", has_sinks),
        ("row_counts_ptr", "*i64", row_counts),
        ("shared_rows_ptr", "*i32", shared),
    ):
        if is_given:
            signature[optional] = type_
        else:
            constants[optional] = None
    return AotCase(name, kernels.combine_splits_kernel, signature, constants, num_warps=config.num_warps)


AOT_CASES = (
    _aot_case("head128-bf16-group4", 128, 4),
    _aot_case("head128-bf16-group4-row-counts", 128, 4, row_counts=True),
    _aot_case("head64-bf16-group4", 64, 4),
    _aot_case("head128-bf16-group4-shared", 128, 4, shared=True),
    _aot_case("head128-bf16-group4-shared-row-counts", 128, 4, shared=True, row_counts=True),
    _aot_case("head256-bf16-group7-sinks", 256, 7, has_sinks=True),
)
