"""Ahead-of-time cases of fused_moe's kernels."""

from pagewire_kernels.fused_moe import triton as kernels
from pagewire_kernels.tuning.fused_moe import moe_config

from kernel_aot.case import TARGETS, AotCase

PREFIX = "fused_moe"


def _aot_cases(
    name: str, hidden: int, size: int, top_k: int, rows: int, target: int, is_gpt_oss: bool = False
) -> tuple[AotCase, AotCase]:
    """is_gpt_oss: with biases and the clamped gate."""
    config = moe_config(target, 2, rows)
    shape: dict[str, object] = {"HIDDEN": hidden, "SIZE": size, "BLOCK_M": config.block_m, "GROUP_M": kernels._GROUP_M}
    bias_type: dict[str, str] = {"bias_ptr": "*bf16"} if is_gpt_oss else {}
    if not is_gpt_oss:
        shape["bias_ptr"] = None
    is_gemma4 = name == "gemma4-26b-a4b"
    scales: dict[str, str] = {"scales_ptr": "*bf16"} if is_gemma4 else {}
    no_scales: dict[str, object] = {} if is_gemma4 else {"scales_ptr": None}
    rows_of = dict.fromkeys(("pairs_ptr", "block_experts_ptr", "block_num_rows_ptr"), "*i32")
    up = AotCase(
        f"up-{name}-{rows}rows-sm{target}",
        kernels.moe_up_kernel,
        {
            **dict.fromkeys(("x_ptr", "gate_up_ptr", "out_ptr"), "*bf16"),
            **bias_type,
            **rows_of,
            "num_blocks": "i32",
            "stride_x": "i32",
        },
        {
            **shape,
            "TOP_K": top_k,
            "ALPHA": 1.702 if is_gpt_oss else 0.0,
            "LIMIT": 7.0 if is_gpt_oss else 0.0,
            "IS_GELU": is_gemma4,
            "IS_GATED": name != "nemotron-3-nano",
            "weights_ptr": None,
            "BLOCK_N": config.up_n,
            "BLOCK_K": config.up_k,
        },
        num_warps=config.up_warps,
        num_stages=config.up_stages,
        divisible=("stride_x",),
        targets=(target,),
    )
    down = AotCase(
        f"down-{name}-{rows}rows-sm{target}",
        kernels.moe_down_kernel,
        {
            **dict.fromkeys(("x_ptr", "down_ptr", "out_ptr"), "*bf16"),
            "weights_ptr": "*fp32",
            **bias_type,
            **scales,
            **rows_of,
            "num_blocks": "i32",
        },
        {**shape, **no_scales, "BLOCK_N": config.down_n, "BLOCK_K": config.down_k},
        num_warps=config.down_warps,
        num_stages=config.down_stages,
        targets=(target,),
    )
    return up, down


AOT_CASES = (
    *(
        case
        for target in TARGETS
        for name, hidden, size, top_k in (("qwen3-30b-a3b", 2048, 768, 8), ("mixtral-8x7b", 4096, 14_336, 2))
        for rows in (1, 32, 512)
        for case in _aot_cases(name, hidden, size, top_k, rows, target)
    ),
    *(
        case
        for target in TARGETS
        for rows in (1, 512)
        for case in _aot_cases("gpt-oss", 2880, 2880, 4, rows, target, is_gpt_oss=True)
    ),
    *(
        case
        for target in TARGETS
        for rows in (1, 512)
        for case in _aot_cases("gemma4-26b-a4b", 2816, 704, 8, rows, target)
    ),
    *(
        case
        for target in TARGETS
        for rows in (1, 512)
        for case in _aot_cases("nemotron-3-nano", 2688, 1856, 6, rows, target)
    ),
    AotCase(
        "sum-qwen3-30b-a3b",
        kernels.moe_sum_kernel,
        {"x_ptr": "*bf16", "out_ptr": "*bf16"},
        {"HIDDEN": 2048, "TOP_K": 8, "COLUMNS": kernels._SUM_COLUMNS},
    ),
)
