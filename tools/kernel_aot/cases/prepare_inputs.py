"""Ahead-of-time cases of prepare_inputs's kernels."""

from pagewire_kernels.prepare_inputs import triton as kernels

from kernel_aot.case import AotCase

PREFIX = "prepare_inputs"

_SIGNATURE = dict.fromkeys(kernels._INT64, "*i64") | dict.fromkeys(kernels._INT32, "*i32")
_SIGNATURE |= dict.fromkeys(("num_rows", "max_blocks", "stride_ints", "stride_tokens", "stride_tables"), "i32")
_CONSTEXPRS = {"BLOCK_SIZE": 64, "NUM_COMPUTED": 1, "STOP_REASON": 2, "BLOCK": kernels._BLOCK}

AOT_CASES = (
    AotCase("decode-block64", kernels.prepare_decode_kernel, _SIGNATURE, _CONSTEXPRS, num_warps=kernels._NUM_WARPS),
    AotCase(
        "mixed-block64",
        kernels.prepare_mixed_kernel,
        _SIGNATURE | {"query_lens_ptr": "*i64", "num_tokens": "i32"},
        _CONSTEXPRS,
        num_warps=kernels._NUM_WARPS,
    ),
)
