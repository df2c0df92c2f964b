"""Ahead-of-time cases of paged_attention's kernels of hopper_prefill.py."""

from pagewire_kernels.paged_attention import hopper_prefill as kernels
from pagewire_kernels.tuning.paged_attention import HopperPrefillConfig, hopper_prefill_config

from kernel_aot.case import AotCase

PREFIX = "paged_attention/hopper_prefill"


def _aot_case(
    name: str,
    *,
    dtype: str = "bf16",
    head_dim: int = 128,
    block_size: int = 64,
    group_size: int = 4,
    sinks: bool = False,
    row_counts: bool = False,
    config: HopperPrefillConfig | None = None,
) -> AotCase:
    config = config or hopper_prefill_config(kernels.HOPPER, head_dim, 2)
    assert config is not None
    query_box, cache_box = kernels._boxes(config, group_size, block_size)
    signature = {"query_desc": _descriptor_type(dtype, query_box)}
    signature |= dict.fromkeys(("key_desc", "value_desc"), _descriptor_type(dtype, cache_box))
    signature |= dict.fromkeys(("block_tables_ptr", "query_start_loc_ptr", "seq_lens_ptr", "counter_ptr"), "*i32")
    signature |= {"out_ptr": f"*{dtype}", "score_scale": "fp32"}
    signature |= dict.fromkeys(("first_seq", "num_seqs", "num_items", "stride_table"), "i32")
    constants: dict[str, object] = {}
    if sinks:
        signature["sinks_ptr"] = f"*{dtype}"
    else:
        constants["sinks_ptr"] = None
    if row_counts:
        signature["row_counts_ptr"] = "*i64"
    else:
        constants["row_counts_ptr"] = None
    return AotCase(
        name=name,
        kernel=kernels.hopper_prefill_kernel,
        signature=signature,
        constexprs=constants | kernels._constants(config, group_size, head_dim, 8, block_size),
        num_warps=4,
        targets=(kernels.HOPPER,),
    )


def _descriptor_type(dtype: str, box: list[int]) -> str:
    return f"tensordesc<{dtype}{box},{kernels._panel_layout(len(box))!r}>"


AOT_CASES = (
    _aot_case("head128-bf16"),
    _aot_case("head64-bf16", head_dim=64),
    _aot_case("head128-fp16", dtype="fp16"),
    _aot_case("head64-fp16", dtype="fp16", head_dim=64),
    _aot_case("head128-bf16-block16", block_size=16),
    _aot_case("head128-bf16-block128", block_size=128),
    _aot_case("head128-bf16-group1", group_size=1),
    _aot_case("head128-bf16-group8", group_size=8),
    _aot_case("head128-bf16-sinks", sinks=True),
    _aot_case("head128-bf16-row-counts", row_counts=True),
)
