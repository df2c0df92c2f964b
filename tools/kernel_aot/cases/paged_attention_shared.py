"""Ahead-of-time cases of paged_attention's kernels of triton_shared.py."""

from pagewire_kernels.paged_attention import triton_shared as kernels
from pagewire_kernels.tuning.paged_attention import shared_config

from kernel_aot.case import AotCase

PREFIX = "paged_attention/shared"


def _aot_case(
    name: str,
    *,
    target: int = 90,
    dtype: str = "bf16",
    head_dim: int = 128,
    block_size: int = 64,
    group_size: int = 4,
    all_options: bool = False,
) -> AotCase:
    config = shared_config(target, head_dim, 4 if dtype == "fp32" else 2)
    signature = dict.fromkeys(("query_ptr", "key_cache_ptr", "value_cache_ptr"), f"*{dtype}")
    signature |= dict.fromkeys(("block_tables_ptr", "seq_lens_ptr", "shares_ptr", "items_ptr", "entries_ptr"), "*i32")
    signature |= {"sums_ptr": "*fp32", "stats_ptr": "*fp32", "score_scale": "fp32", "softcap_log2": "fp32"}
    signature |= dict.fromkeys(("first_partial", "stride_query_token", "stride_table"), "i32")
    constants: dict[str, object] = {"HAS_SOFTCAP": all_options}
    if all_options:
        signature["alibi_slopes_ptr"] = "*fp32"
    else:
        constants["alibi_slopes_ptr"] = None
    return AotCase(
        name=name,
        kernel=kernels.shared_attention_kernel,
        signature=signature,
        constexprs=constants | kernels._constants(config, group_size, head_dim, 8, block_size),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        divisible=("stride_query_token",),
        targets=(target,),
    )


AOT_CASES = (
    *(
        _aot_case(f"head{head_dim}-bf16-sm{target}", target=target, head_dim=head_dim)
        for target in (90, 80, 100)
        for head_dim in (128, 64, 256, 512)
    ),
    _aot_case("head128-fp16", dtype="fp16"),
    _aot_case("head128-fp32", dtype="fp32"),
    _aot_case("head128-bf16-block16", block_size=16),
    _aot_case("head128-bf16-group7", group_size=7),
    _aot_case("head80-bf16-group1", head_dim=80, group_size=1),
    _aot_case("head128-bf16-all-options", all_options=True),
)
