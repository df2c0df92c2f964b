"""Ahead-of-time cases of gated_delta_net's kernels."""

from pagewire_kernels.gated_delta_net import triton as kernels
from pagewire_kernels.gated_delta_net import triton_chunks, triton_decode
from pagewire_kernels.gated_delta_net.inputs import NORM_EPS

from kernel_aot.case import AotCase

PREFIX = "gated_delta_net"
Shape = tuple[int, int, int, int]
"""num_heads, num_key_heads, key_dim, value_dim."""
QWEN: Shape = (32, 16, 128, 128)
OLMO: Shape = (30, 30, 96, 192)
_STRIDES = ("stride_query", "stride_key", "stride_value", "stride_beta", "stride_decay", "stride_gate", "stride_state")
_TYPES = {
    **dict.fromkeys(_STRIDES, "i32"),
    **dict.fromkeys(("a_log_ptr", "dt_bias_ptr", "state_ptr", "decays_ptr", "key_scales_ptr"), "*fp32"),
    **dict.fromkeys(("read_slots_ptr", "write_slots_ptr", "query_start_loc_ptr"), "*i32"),
    **dict.fromkeys(("eps", "beta_scale"), "fp32"),
    **dict.fromkeys(("num_decodes", "first_seq", "num_seqs"), "i32"),
}


def _case(
    name: str,
    kernel: object,
    constants: dict[str, object],
    num_warps: int,
    *,
    dtype: str = "bf16",
    row_counts: bool = False,
    num_stages: int = 3,
) -> AotCase:
    names: list[str] = getattr(kernel, "arg_names")  # noqa: B009
    constants = constants | ({"NORM_EPS": NORM_EPS} if "NORM_EPS" in names else {})
    if not row_counts:
        constants["row_counts_ptr"] = None
    types = {"row_counts_ptr": "*i64", **_TYPES}
    signature = {each: types.get(each, f"*{dtype}") for each in names if each not in constants and each != "PDL"}
    strides = tuple(each for each in _STRIDES if each in signature)
    return AotCase(
        name,
        kernel,
        signature,
        constants,
        num_warps=num_warps,
        num_stages=num_stages,
        divisible=strides,
        # A few numbers of prompts' sums do not fit, which costs less on an H200 than more warps do. float32 is for
        # comparisons.
        may_spill=name.startswith(("prepare", "read")) or dtype == "fp32",
    )


def _decode(name: str, shape: Shape, *, dtype: str = "bf16", row_counts: bool = False) -> AotCase:
    constants = kernels.decode_constants(*shape)
    warps = kernels.decode_warps(constants)
    return _case(
        f"decode-{name}",
        triton_decode.delta_decode_kernel,
        {**constants},
        warps,
        dtype=dtype,
        row_counts=row_counts,
    )


def _chunks(name: str, shape: Shape, *, dtype: str = "bf16", row_counts: bool = False) -> tuple[AotCase, ...]:
    precision = kernels.precision(4 if dtype == "fp32" else 2)
    prepare = {**kernels.prepare_constants(*shape), "PRECISION": precision}
    scan, read = kernels.scan_constants(*shape), kernels.read_constants(*shape)
    return (
        _case(
            f"prepare-{name}", triton_chunks.prepare_chunks_kernel, {**prepare}, 4, dtype=dtype, row_counts=row_counts
        ),
        _case(
            f"scan-{name}",
            triton_chunks.scan_chunks_kernel,
            {**scan},
            4,
            dtype=dtype,
            row_counts=row_counts,
            num_stages=2,
        ),
        _case(
            f"read-{name}",
            triton_chunks.read_chunks_kernel,
            {**read},
            kernels.read_warps(read),
            dtype=dtype,
            row_counts=row_counts,
        ),
    )


AOT_CASES = (
    _decode("heads32-dim128-bf16", QWEN),
    _decode("heads32-dim128-bf16-row-counts", QWEN, row_counts=True),
    _decode("heads30-dim96-192-bf16", OLMO),
    _decode("heads32-dim128-fp32", QWEN, dtype="fp32"),
    *_chunks("heads32-dim128-bf16", QWEN),
    *_chunks("heads32-dim128-bf16-row-counts", QWEN, row_counts=True),
    *_chunks("heads30-dim96-192-bf16", OLMO),
)
