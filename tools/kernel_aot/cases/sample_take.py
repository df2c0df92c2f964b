"""Ahead-of-time cases of sample's kernel of triton_take.py."""

from pagewire_kernels.sample import triton_take as kernels

from kernel_aot.case import AotCase

PREFIX = "sample/take"

_POINTERS = {
    "logits_ptr": "*bf16",
    "slots_ptr": "*i64",
    "ints_ptr": "*i64",
    "num_tokens_ptr": "*i64",
    "token_ids_ptr": "*i32",
    "stop_token_ids_ptr": "*i32",
    "masks_ptr": "*u8",
    "mask_rows_ptr": "*i64",
    "allowed_ptr": "*u8",
    "bad_words_ptr": "*i32",
    "scratch_ptr": "*fp32",
    "out_ptr": "*bf16",
}
_INTEGERS = ("num_masks", "stride_logits", "stride_num_tokens", "stride_tokens", "stride_stops", "stride_masks")

AOT_CASES = (
    AotCase(
        "vocab128256-bf16",
        kernels.take_kernel,
        _POINTERS | dict.fromkeys(_INTEGERS, "i32"),
        {"VOCAB_SIZE": 128_256, "NUM_STOPS": 64, "CHUNK": kernels.CHUNK},
        num_warps=kernels.NUM_WARPS,
        divisible=("stride_logits",),
    ),
)
