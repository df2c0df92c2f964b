"""Ahead-of-time cases of paged_attention's kernels of triton_decode.py."""

from pagewire_kernels.paged_attention import triton_decode as kernels
from pagewire_kernels.tuning.paged_attention import decode_config

from kernel_aot.case import AotCase

PREFIX = "paged_attention/decode"


def _aot_case(
    name: str,
    *,
    target: int = 90,
    dtype: str = "bf16",
    head_dim: int = 128,
    block_size: int = 64,
    group_size: int = 4,
    sliding_window: int = 0,
    all_options: bool = False,
    softcap: bool = False,
    sinks: bool = False,
    splits: bool = True,
    row_counts: bool = False,
    shared: bool = False,
) -> AotCase:
    config = decode_config(target, head_dim, 4 if dtype == "fp32" else 2, is_shared=shared)
    slopes, sink = {"alibi_slopes_ptr": "*fp32"}, {"sinks_ptr": "*fp32" if all_options else "*bf16"}
    scratch = {"sums_ptr": "*fp32", "stats_ptr": "*fp32", "splits_ptr": "*i32"}
    signature = dict.fromkeys(("query_ptr", "key_cache_ptr", "value_cache_ptr", "out_ptr"), f"*{dtype}")
    signature |= {"block_tables_ptr": "*i32", "seq_lens_ptr": "*i32", "score_scale": "fp32", "softcap_log2": "fp32"}
    signature |= dict.fromkeys(("num_seqs", "num_shares", "stride_query_token", "stride_table"), "i32")
    constants: dict[str, object] = {"SLIDING_WINDOW": sliding_window, "HAS_SOFTCAP": all_options or softcap}
    constants["BLOCK_SEQS"] = kernels.block_seqs(256)
    counts, shared_rows = {"row_counts_ptr": "*i64"}, {"shared_rows_ptr": "*i32"}
    options = ((slopes, all_options), (sink, all_options or sinks), (scratch, splits), (counts, row_counts))
    for optional, is_given in (*options, (shared_rows, shared)):
        if is_given:
            signature |= optional
        else:
            constants |= dict.fromkeys(optional)
    shape = kernels._constants(config, group_size, head_dim, 8, block_size)
    return AotCase(
        name=name,
        kernel=kernels.decode_attention_kernel,
        signature=signature,
        constexprs=constants | shape,
        num_warps=kernels._num_warps(config, int(shape["BLOCK_M"])),
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
    _aot_case("head128-bf16-whole", splits=False),
    _aot_case("head128-bf16-row-counts", row_counts=True),
    _aot_case("head128-bf16-whole-row-counts", splits=False, row_counts=True),
    _aot_case("head128-bf16-shared", shared=True),
    _aot_case("head128-bf16-shared-row-counts", shared=True, row_counts=True),
    _aot_case("head128-bf16-block16-shared", block_size=16, shared=True),
    _aot_case("head128-fp16", dtype="fp16"),
    _aot_case("head128-fp32", dtype="fp32"),
    _aot_case("head128-bf16-block16", block_size=16),
    _aot_case("head128-bf16-group16", group_size=16),
    _aot_case("head64-bf16-group71", head_dim=64, group_size=71),
    _aot_case("head80-bf16-group1", head_dim=80, group_size=1),
    _aot_case("head128-bf16-all-options", sliding_window=4096, all_options=True),
    _aot_case("gpt-oss", head_dim=64, group_size=8, sliding_window=128, sinks=True),
    _aot_case("gemma2-9b", head_dim=256, group_size=2, sliding_window=4096, softcap=True),
)
