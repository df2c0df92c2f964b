"""Ahead-of-time cases of write_runs's kernel."""

from pagewire_kernels.write_runs import triton as kernels

from kernel_aot.case import AotCase

PREFIX = "write_runs"

AOT_CASES = (
    AotCase(
        "words",
        kernels.write_runs_kernel,
        {"base_ptr": "*i32", "offsets_ptr": "*i64", "runs_ptr": "*i32", "num_runs": "i32"},
        {"BLOCK": kernels._BLOCK},
        num_warps=kernels._NUM_WARPS,
    ),
)
