"""Ahead-of-time cases of causal_conv's kernels."""

from pagewire_kernels.causal_conv import triton as kernels

from kernel_aot.case import AotCase

PREFIX = "causal_conv"

_POINTERS = {"x_ptr": "*bf16", "state_ptr": "*bf16", "read_slots_ptr": "*i32"}
_WEIGHT = {"weight_ptr": "*bf16", "bias_ptr": "*bf16", "out_ptr": "*bf16"}


def _cases(name: str, channels: int, width: int, *, has_bias: bool, silu: bool) -> tuple[AotCase, ...]:
    sizes = {"CHANNELS": channels, "WIDTH": width}
    ends = {"HAS_BIAS": has_bias, "SILU": silu}
    return (
        AotCase(
            f"decode-{name}",
            kernels.decode_kernel,
            {**_POINTERS, **_WEIGHT, "write_slots_ptr": "*i32", "stride_x": "i32"},
            {**sizes, **ends, "COLUMNS": kernels.DECODE_COLUMNS},
            divisible=("stride_x",),
        ),
        AotCase(
            f"tokens-{name}",
            kernels.tokens_kernel,
            {
                **_POINTERS,
                **_WEIGHT,
                "query_start_loc_ptr": "*i32",
                "num_tokens": "i32",
                "num_seqs": "i32",
                "stride_x": "i32",
            },
            {**sizes, **ends, "HALVINGS": 9, "ROWS": kernels.TOKEN_ROWS, "COLUMNS": kernels.TOKEN_COLUMNS},
            divisible=("stride_x",),
        ),
        AotCase(
            f"states-{name}",
            kernels.states_kernel,
            {**_POINTERS, "write_slots_ptr": "*i32", "query_start_loc_ptr": "*i32", "stride_x": "i32"},
            {**sizes, "COLUMNS": kernels.DECODE_COLUMNS},
            divisible=("stride_x",),
        ),
    )


AOT_CASES = (
    *_cases("lfm2-bf16", 2048, 3, has_bias=False, silu=False),
    *_cases("mamba-bf16", 10240, 4, has_bias=True, silu=True),
)
