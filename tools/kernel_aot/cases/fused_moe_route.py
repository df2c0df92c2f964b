"""Ahead-of-time cases of fused_moe's kernels of triton_route.py."""

from collections.abc import Iterator

from pagewire_kernels.fused_moe import triton_route as kernels
from pagewire_kernels.fused_moe.router import RouterSpec

from kernel_aot.case import AotCase

PREFIX = "fused_moe/route"


QWEN3 = RouterSpec(8, renormalise=True)
MIXTRAL = RouterSpec(2, renormalise=True)
MINIMAX_M2 = RouterSpec(8, "sigmoid", renormalise=True)
DEEPSEEK_V3 = RouterSpec(8, "sigmoid", renormalise=True, scale=2.5, num_groups=8, top_groups=4)
PHI_3_5_MOE = RouterSpec(2, "sparsemixer", tolerance=0.02)


def _aot_cases(
    name: str, num_experts: int, router: RouterSpec, num_few: int, has_correction: bool = False
) -> Iterator[AotCase]:
    constants = kernels._constants(num_experts, router, has_correction)
    experts = {"NUM_EXPERTS": num_experts, "EXPERTS_BLOCK": constants["EXPERTS_BLOCK"]}
    logits = {
        "logits_ptr": "*bf16",
        "correction_ptr": "*fp32",
        "weights_ptr": "*fp32",
        "num_tokens": "i32",
        "stride_logits": "i32",
    }
    rows = dict.fromkeys(("pairs_ptr", "block_experts_ptr", "block_num_rows_ptr"), "*i32")
    chosen = dict.fromkeys(("experts_ptr", "ranks_ptr", "counts_ptr"), "*i32")
    few = {"BLOCK_M": 16, "TOKENS": num_few, "SLOTS": num_few * constants["TOP_K_BLOCK"]}
    yield AotCase(
        f"few-{name}",
        kernels.moe_route_few_kernel,
        {**logits, **rows, "num_blocks": "i32"},
        {**constants, **few},
        num_warps=kernels._few_warps(few["SLOTS"], constants["EXPERTS_BLOCK"]),
    )
    yield AotCase(
        f"choose-{name}",
        kernels.moe_choose_kernel,
        {**logits, **chosen},
        {**constants, "TOKENS": kernels._CHOSEN},
        num_warps=1,
    )
    yield AotCase(
        f"arrange-{name}",
        kernels.moe_arrange_kernel,
        {**chosen, **rows, "num_pairs": "i32", "num_blocks": "i32"},
        {**experts, "BLOCK_M": 16, "ARRANGED": kernels._ARRANGED},
    )


AOT_CASES = (
    *_aot_cases("qwen3-30b-a3b", 128, QWEN3, 16),
    *_aot_cases("mixtral-8x7b", 8, MIXTRAL, 64),
    *_aot_cases("minimax-m2", 256, MINIMAX_M2, 8, has_correction=True),
    *_aot_cases("deepseek-v3", 256, DEEPSEEK_V3, 8, has_correction=True),
    *_aot_cases("phi-3.5-moe", 16, PHI_3_5_MOE, 64),
)
