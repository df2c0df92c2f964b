"""Ahead-of-time cases of rotary_and_cache's kernels."""

from pagewire_kernels.rotary_and_cache import triton as kernels

from kernel_aot.case import AotCase

PREFIX = "rotary_and_cache"


def _aot_case(
    name: str,
    heads: tuple[int, int, int],
    rotary_dim: int | None = None,
    interleaved: bool = False,
    has_norm: bool = False,
) -> AotCase:
    tensors = ("query", "key", "value", "key_cache", "value_cache", "query_weight", "key_weight")
    strides = ("stride_query_token", "stride_key_token", "stride_value_token")
    signature = {f"{tensor}_ptr": "*bf16" for tensor in tensors} | dict.fromkeys(strides, "i32")
    signature |= {"positions_ptr": "*i64", "slot_mapping_ptr": "*i64", "cos_sin_ptr": "*fp32", "eps": "fp32"}
    shape = kernels._specialise(*heads, rotary_dim or heads[2], interleaved, has_norm)
    return AotCase(
        name, kernels.rotary_and_cache_kernel, signature, shape.constexprs, num_warps=shape.num_warps, divisible=strides
    )


AOT_CASES = (
    _aot_case("heads32-8-head128-bf16", (32, 8, 128)),
    _aot_case("heads32-8-head64-bf16", (32, 8, 64)),
    _aot_case("heads32-8-head128-norm-bf16", (32, 8, 128), has_norm=True),
    _aot_case("heads32-32-head80-rotary32-bf16", (32, 32, 80), rotary_dim=32),
    _aot_case("heads16-16-head256-rotary64-interleaved-bf16", (16, 16, 256), rotary_dim=64, interleaved=True),
)
