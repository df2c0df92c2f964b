"""Ahead-of-time cases of sample's kernels."""

import triton
from pagewire_kernels.sample import triton as kernels
from pagewire_kernels.sample import triton_choose, triton_chunks, triton_weigh
from pagewire_kernels.sample.triton_choose import sample_choose_kernel
from pagewire_kernels.sample.triton_chunks import sample_chunk_kernel
from pagewire_kernels.sample.triton_penalties import TOKENS_AT_ONCE
from pagewire_kernels.sample.triton_weigh import sample_bounds_kernel, sample_weigh_kernel

from kernel_aot.case import AotCase

PREFIX = "sample"


def _aot_cases(vocab_size: int, logits_kind: str, name: str, *, has_rare_stages: bool = False) -> tuple[AotCase, ...]:
    constexprs: dict[str, object] = {
        "RARE": has_rare_stages,
        "NUM_STOPS": 64,
        "TOKENS_AT_ONCE": TOKENS_AT_ONCE,
        **kernels._sizes(vocab_size),
    }
    signature = kernels._signature(logits_kind)

    def case(kernel: triton.JITFunction, part: str, num_warps: int) -> AotCase:
        return AotCase(
            f"{part}-{name}",
            kernel,
            {key: kind for key, kind in signature.items() if key in kernel.arg_names},
            {key: value for key, value in constexprs.items() if key in kernel.arg_names},
            num_warps=num_warps,
            divisible=("stride_logits",),
            # One program chooses a row's token: many stages that never run together, at 128 registers for two programs
            # on a multiprocessor. With 1,024 segments, compute capability 10.0 lacks a few. For float32 Triton 3.6
            # gives the weighing of capability 10.0 fewer registers than it could have.
            may_spill=part == "choose" or (part == "weigh" and logits_kind == "*fp32"),
        )

    return (
        case(sample_chunk_kernel, "chunks", triton_chunks.NUM_WARPS),
        case(sample_bounds_kernel, "bounds", triton_weigh.BOUNDS_WARPS),
        case(sample_weigh_kernel, "weigh", triton_weigh.NUM_WARPS),
        case(sample_choose_kernel, "choose", triton_choose.NUM_WARPS),
    )


AOT_CASES = (
    *_aot_cases(128_256, "*bf16", "vocab128256-bf16"),
    *_aot_cases(151_936, "*bf16", "vocab151936-bf16"),
    *_aot_cases(32_000, "*fp32", "vocab32000-fp32"),
    *_aot_cases(128_256, "*bf16", "vocab128256-bf16-rare-stages", has_rare_stages=True),
)
