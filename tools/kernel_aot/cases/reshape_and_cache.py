"""Ahead-of-time cases of reshape_and_cache's kernels."""

from pagewire_kernels.reshape_and_cache import triton as kernels

from kernel_aot.case import AotCase

PREFIX = "reshape_and_cache"

AOT_CASES = (
    AotCase(
        "heads12-head64-bf16",
        kernels.reshape_and_cache_kernel,
        {
            **dict.fromkeys(("key_ptr", "value_ptr", "key_cache_ptr", "value_cache_ptr"), "*bf16"),
            "slot_mapping_ptr": "*i64",
            **dict.fromkeys(("stride_key_token", "stride_value_token"), "i32"),
        },
        {"TOKEN_SIZE": 768, "BLOCK": 1024},
        divisible=("stride_key_token", "stride_value_token"),
    ),
)
