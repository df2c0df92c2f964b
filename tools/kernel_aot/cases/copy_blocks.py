"""Ahead-of-time cases of copy_blocks's kernels."""

from pagewire_kernels.copy_blocks import triton as kernels

from kernel_aot.case import AotCase

PREFIX = "copy_blocks"

AOT_CASES = (
    AotCase(
        "block64-heads8-head128-bf16",
        kernels.copy_blocks_kernel,
        {"base_ptr": "*i32", "offsets_ptr": "*i64", "source_ids_ptr": "*i64", "target_ids_ptr": "*i64"},
        {"UNITS_PER_BLOCK": 64 * 8 * 128 * 2 // kernels._UNIT_BYTES, "WORDS": kernels._WORDS},
        num_warps=kernels._NUM_WARPS,
    ),
)
