"""Ahead-of-time cases of latent_attention's kernels."""

from pagewire_kernels.latent_attention import triton as kernels
from pagewire_kernels.paged_attention import triton_combine
from pagewire_kernels.paged_attention.triton_decode import block_seqs

from kernel_aot.case import AotCase

PREFIX = "latent_attention"


def _signature(dtype: str) -> dict[str, str]:
    tensors = ("query_latent_ptr", "query_rope_ptr", "cache_ptr", "out_ptr")
    strides = ("stride_latent_token", "stride_latent_head", "stride_rope_token", "stride_rope_head", "stride_table")
    signature = dict.fromkeys(tensors, f"*{dtype}") | dict.fromkeys(strides, "i32")
    return signature | {"block_tables_ptr": "*i32", "seq_lens_ptr": "*i32", "score_scale": "fp32", "num_seqs": "i32"}


_STRIDES = ("stride_latent_token", "stride_latent_head", "stride_rope_token", "stride_rope_head")


def _decode(
    name: str,
    num_heads: int,
    *,
    latent_dim: int = 512,
    block_size: int = 64,
    dtype: str = "bf16",
    splits: bool = True,
    row_counts: bool = False,
) -> AotCase:
    config = kernels.config_for(4 if dtype == "fp32" else 2, num_heads, 90)
    shape = kernels.decode_constants(config, num_heads, latent_dim, 64, block_size)
    signature = _signature(dtype) | {"num_shares": "i32"}
    constants: dict[str, object] = {**shape, "BLOCK_SEQS": block_seqs(256)}
    scratch = {"sums_ptr": "*fp32", "stats_ptr": "*fp32", "splits_ptr": "*i32"}
    for optional, is_given in ((scratch, splits), ({"row_counts_ptr": "*i64"}, row_counts)):
        if is_given:
            signature |= optional
        else:
            constants |= dict.fromkeys(optional)
    return AotCase(
        f"decode-{name}",
        kernels.latent_decode_kernel,
        signature,
        constants,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        divisible=_STRIDES,
        # Sums of 32 rows: 4 warps that spill some of them take half the time of 8.
        may_spill=shape["BLOCK_M"] > 16,
    )


def _prefill(name: str, num_heads: int, *, latent_dim: int = 512, row_counts: bool = False) -> AotCase:
    shape = kernels.prefill_constants(kernels.HALF_MANY, num_heads, latent_dim, 64, 64)
    signature = _signature("bf16") | {"query_start_loc_ptr": "*i32", "first_seq": "i32"}
    constants: dict[str, object] = {**shape}
    if row_counts:
        signature["row_counts_ptr"] = "*i64"
    else:
        constants["row_counts_ptr"] = None
    return AotCase(
        f"prefill-{name}",
        kernels.latent_prefill_kernel,
        signature,
        constants,
        num_warps=kernels.HALF_MANY.num_warps,
        num_stages=kernels.HALF_MANY.num_stages,
        divisible=_STRIDES,
        # Sums of 32 rows: 4 warps that spill some of them take half the time of 8.
        may_spill=shape["BLOCK_M"] > 16,
    )


def _combine(name: str, num_heads: int) -> AotCase:
    shape = kernels.decode_constants(kernels.HALF_MANY, num_heads, 512, 64, 64)
    signature = {"sums_ptr": "*fp32", "stats_ptr": "*fp32", "splits_ptr": "*i32", "out_ptr": "*bf16"}
    signature |= {"heads_per_program": "i32", "first_shared": "i32"}
    constants = kernels.combine_constants(shape, 512) | dict.fromkeys(
        ("sinks_ptr", "row_counts_ptr", "shared_rows_ptr")
    )
    return AotCase(f"combine-{name}", triton_combine.combine_splits_kernel, signature, constants, num_warps=4)


AOT_CASES = (
    _decode("heads128-bf16", 128),
    _decode("heads16-bf16", 16),
    _decode("heads20-bf16", 20),
    _decode("heads128-bf16-whole", 128, splits=False),
    _decode("heads128-bf16-row-counts", 128, row_counts=True),
    _decode("heads128-bf16-block16", 128, block_size=16),
    _decode("heads32-latent256-bf16", 32, latent_dim=256),
    _decode("heads16-fp32", 16, dtype="fp32"),
    _prefill("heads128-bf16", 128),
    _prefill("heads16-bf16", 16),
    _prefill("heads20-bf16-row-counts", 20, row_counts=True),
    _prefill("heads32-latent256-bf16", 32, latent_dim=256),
    _combine("heads128-bf16", 128),
)
