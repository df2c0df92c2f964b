"""Ahead-of-time cases of sample's kernels of triton_logprobs.py."""

import triton
from pagewire_kernels.sample import triton_logprobs as kernels

from kernel_aot.case import AotCase

PREFIX = "sample/logprobs"


def _aot_cases(vocab_size: int) -> tuple[AotCase, AotCase]:
    num_chunks = triton.cdiv(vocab_size, kernels._CHUNK)
    shared = {"logits_ptr": "*bf16", "sampled_ptr": "*i64", "chunk_max_ptr": "*fp32", "chunk_mass_ptr": "*fp32"}
    shared |= {"num_larger_ptr": "*i32", "num_top": "i32", "stride_logits": "i32"}
    outputs = {"chunk_top_ptr": "*i64", "logprobs_ptr": "*fp32", "ranks_ptr": "*i64", "top_ids_ptr": "*i64"}
    outputs |= {"top_logprobs_ptr": "*fp32", "normalisers_ptr": "*fp32"}
    blocks = {
        "NUM_CHUNKS": num_chunks,
        "CHUNK_BLOCK": triton.next_power_of_2(num_chunks),
        "TOP_BLOCK": triton.next_power_of_2(num_chunks * kernels.MAX_TOP),
    }
    name, divisible = f"vocab{vocab_size}-bf16", ("stride_logits",)
    return (
        AotCase(
            f"chunks-{name}",
            kernels.logprobs_chunk_kernel,
            shared | {"top_ptr": "*i64"},
            {"VOCAB_SIZE": vocab_size, "CHUNK": kernels._CHUNK},
            num_warps=kernels._NUM_WARPS,
            divisible=divisible,
        ),
        AotCase(
            f"rows-{name}",
            kernels.logprobs_row_kernel,
            shared | outputs,
            {"VOCAB_SIZE": vocab_size, **blocks},
            num_warps=kernels._CHOOSE_WARPS,
            divisible=divisible,
        ),
    )


AOT_CASES = _aot_cases(128_256)
