"""Ahead-of-time cases of latent_and_cache's kernel."""

from pagewire_kernels.latent_and_cache import triton as kernels

from kernel_aot.case import AotCase

PREFIX = "latent_and_cache"


def _aot_case(name: str, num_heads: int, latent_dim: int, rope_dim: int, interleaved: bool) -> AotCase:
    strides = ("stride_query_token", "stride_latent_token")
    signature = dict.fromkeys(("query_ptr", "latent_ptr", "weight_ptr", "cache_ptr"), "*bf16")
    signature |= dict.fromkeys(strides, "i32")
    signature |= {"positions_ptr": "*i64", "slot_mapping_ptr": "*i64", "cos_sin_ptr": "*fp32", "eps": "fp32"}
    constants: dict[str, object] = {**kernels.constants(num_heads, latent_dim, rope_dim, interleaved)}
    return AotCase(name, kernels.latent_and_cache_kernel, signature, constants, divisible=strides)


AOT_CASES = (
    _aot_case("heads128-latent512-interleaved-bf16", 128, 512, 64, True),
    _aot_case("heads40-latent256-bf16", 40, 256, 32, False),
)
