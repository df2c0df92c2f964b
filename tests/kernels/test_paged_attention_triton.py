"""The attention kernels for GPUs against the reference, in Triton's interpreter.

They run there even if there is a GPU, which test_paged_attention_gpu.py uses. Every float of torch.empty is NaN, so
that an element which a kernel does not write is noticed.
"""

import re

import pytest
import torch
from interpreter import IN_INTERPRETER, run_in_interpreter
from pagewire_kernels.paged_attention import AttentionInputs, reference

pytest.importorskip("triton")
runs_kernels = pytest.mark.skipif(not IN_INTERPRETER, reason="runs in the interpreter's own process")
# The exponential of a sink over nothing is infinite, and meant to be: a GPU does not warn.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp2:RuntimeWarning")
TOLERANCES = {torch.float32: 1e-5, torch.float16: 3e-3}


@pytest.mark.slow
@pytest.mark.skipif(IN_INTERPRETER, reason="is this process")
def test_kernels_agree_with_the_reference_in_the_interpreter():
    run_in_interpreter(__file__)


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    empty = torch.empty

    def poisoned(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)


def tensors(batch):
    return (
        batch.query,
        batch.key_cache,
        batch.value_cache,
        batch.block_tables,
        batch.query_start_loc,
        batch.seq_lens,
    )


def check_equal(out, batch, **options):
    lens = (batch.query.shape[2] ** -0.5, batch.max_query_len, batch.max_seq_len)
    tolerance = TOLERANCES[batch.query.dtype]
    expected = reference.paged_attention(AttentionInputs(*tensors(batch), *lens, **options))
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)


def attend(batch, num_decodes=0, **options):
    """The op as it is called on a GPU, with the configuration of an H200."""
    from pagewire_kernels.paged_attention import triton as kernels

    lens = (batch.query.shape[2] ** -0.5, batch.max_query_len, batch.max_seq_len)
    out = kernels.paged_attention(AttentionInputs(*tensors(batch), *lens, num_decodes=num_decodes, **options))
    check_equal(out, batch, **options)


def attend_in_small_tiles(batch, num_decodes=0, late_values=True, min_split_tiles=1, **options):
    """Tiles of 16 keys and 16 rows, so that short sequences have many, and splits of few."""
    from pagewire_kernels.paged_attention.triton_decode import attend_decodes
    from pagewire_kernels.paged_attention.triton_prefill import attend_prefills
    from pagewire_kernels.tuning.paged_attention import DecodeConfig, PrefillConfig

    inputs = AttentionInputs(
        *tensors(batch),
        scale=batch.query.shape[2] ** -0.5,
        max_query_len=batch.max_query_len,
        max_seq_len=batch.max_seq_len,
        sliding_window=options.get("sliding_window", 0),
        logit_softcap=options.get("logit_softcap", 0.0),
        alibi_slopes=options.get("alibi_slopes"),
        sinks=options.get("sinks"),
    )
    out = torch.empty(batch.query.shape, dtype=batch.query.dtype)
    if num_decodes:
        attend_decodes(inputs, out, num_decodes, DecodeConfig(16, 4, 3, 1, min_split_tiles))
    if num_decodes < len(batch.seq_lens):
        attend_prefills(inputs, out, num_decodes, PrefillConfig(16, 16, 4, 3, late_values))
    check_equal(out, batch, **options)


def random_options(num_heads):
    generator = torch.Generator().manual_seed(1)
    slopes = torch.rand(num_heads, generator=generator)
    return {"logit_softcap": 2.0, "alibi_slopes": slopes, "sinks": torch.randn(num_heads, generator=generator)}


@runs_kernels
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 2, 16), (7, 1, 40), (2, 2, 80), (20, 1, 7)])
def test_any_head_size_and_group(paged_batch, num_heads, num_kv_heads, head_dim, dtype):
    heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    attend(paged_batch([1, 1, 9, 40], [30, 70, 20, 90], dtype=dtype, **heads), num_decodes=2)


@runs_kernels
@pytest.mark.parametrize("block_size", [1, 8, 16, 48, 64, 128])
def test_any_block_size(paged_batch, block_size):
    attend(paged_batch([1, 3, 70], [300, 35, 166], block_size=block_size), num_decodes=1)


@runs_kernels
@pytest.mark.parametrize("late_values", [True, False])
@pytest.mark.parametrize("block_size", [8, 16, 64])
def test_prefills_of_many_tiles(paged_batch, block_size, late_values):
    batch = paged_batch(
        [21, 1, 40, 5], [21, 50, 75, 64], num_heads=3, num_kv_heads=1, head_dim=20, block_size=block_size
    )
    attend_in_small_tiles(batch, late_values=late_values)


@runs_kernels
@pytest.mark.parametrize("late_values", [True, False])
@pytest.mark.parametrize("sliding_window", [1, 5, 16, 40, 1000])
def test_prefills_see_only_their_window(paged_batch, sliding_window, late_values):
    batch = paged_batch([20, 1, 40], [20, 50, 90], num_heads=2, num_kv_heads=1)
    attend_in_small_tiles(batch, late_values=late_values, sliding_window=sliding_window)


@runs_kernels
@pytest.mark.parametrize("seq_lens", [[600], [1, 100, 17, 0, 222, 16], [300, 300], [400, *[3] * 34]], ids=str)
def test_decodes_in_many_splits(paged_batch, seq_lens):
    attend_in_small_tiles(
        paged_batch([1] * len(seq_lens), seq_lens, num_heads=3, num_kv_heads=1), num_decodes=len(seq_lens)
    )


@runs_kernels
def test_decodes_of_more_splits_than_are_added_at_once(paged_batch):
    batch = paged_batch([1], [1040], num_heads=8, num_kv_heads=1, head_dim=64)
    attend_in_small_tiles(batch, num_decodes=1)


@runs_kernels
def test_decodes_too_short_to_split(paged_batch):
    attend_in_small_tiles(paged_batch([1] * 3, [60, 0, 17]), num_decodes=3, min_split_tiles=4)


@runs_kernels
@pytest.mark.parametrize("sliding_window", [1, 20, 64, 200])
def test_decodes_see_only_their_window(paged_batch, sliding_window):
    batch = paged_batch([1] * 4, [400, 300, 40, 5], num_heads=2, num_kv_heads=1)
    attend_in_small_tiles(batch, num_decodes=4, sliding_window=sliding_window)


@runs_kernels
def test_heads_of_512(paged_batch):
    attend(paged_batch([1, 1, 9], [30, 70, 20], dtype=torch.float16, num_heads=4, head_dim=512), num_decodes=2)


@runs_kernels
@pytest.mark.parametrize("option", ["logit_softcap", "alibi_slopes", "sinks"])
def test_each_option_alone(paged_batch, option):
    batch = paged_batch([1, 1, 20], [100, 30, 50], num_heads=6)
    attend_in_small_tiles(batch, num_decodes=2, **{option: random_options(6)[option]})


@runs_kernels
@pytest.mark.parametrize("sliding_window", [0, 50])
def test_all_options_together(paged_batch, sliding_window):
    batch = paged_batch([1, 1, 1, 30, 1, 5], [200, 0, 20, 60, 50, 0], num_heads=6)
    attend_in_small_tiles(batch, num_decodes=3, sliding_window=sliding_window, **random_options(6))


@runs_kernels
def test_sinks_far_above_and_far_below_all_scores(paged_batch):
    sinks = torch.tensor([200.0, -200.0, 1e4, -1e4])
    attend_in_small_tiles(paged_batch([1, 7], [200, 9]), num_decodes=1, sinks=sinks)


@runs_kernels
def test_large_scores_do_not_overflow(paged_batch):
    batch = paged_batch([1, 4], [200, 20])
    batch.query.mul_(300.0)
    attend_in_small_tiles(batch, num_decodes=1)


@runs_kernels
def test_slots_before_the_window_may_hold_anything(paged_batch):
    batch = paged_batch([1, 3], [50, 90], block_size=8)
    window = 10
    for row, (seq_len, query_len) in enumerate([(50, 1), (90, 3)]):
        for token in range(seq_len - query_len - window + 1):
            block = batch.block_tables[row, token // 8]
            for cache in (batch.key_cache, batch.value_cache):
                cache[block, token % 8] = float("nan")
    from pagewire_kernels.paged_attention import triton as kernels

    options = {"sliding_window": window, "num_decodes": 1}
    assert kernels.paged_attention(AttentionInputs(*tensors(batch), 0.25, 3, 90, **options)).isfinite().all()


def attend_as_captured(batch, num_rows, num_decodes, num_tokens, small_tiles, **options):
    """Counts are read on the device; the batch is padded with rows without tokens and with tokens of no row."""
    from pagewire_kernels.paged_attention import triton as kernels
    from pagewire_kernels.paged_attention.triton_decode import attend_decodes
    from pagewire_kernels.paged_attention.triton_prefill import attend_prefills
    from pagewire_kernels.tuning.paged_attention import DecodeConfig, PrefillConfig

    num_padding, num_void = num_tokens - batch.query.shape[0], num_rows - len(batch.seq_lens)
    starts = batch.query_start_loc
    inputs = AttentionInputs(
        torch.nn.functional.pad(batch.query, (0, 0, 0, 0, 0, num_padding), value=float("nan")),
        batch.key_cache,
        batch.value_cache,
        torch.nn.functional.pad(batch.block_tables, (0, 0, 0, num_void), value=1 << 30),
        torch.cat([starts, starts[-1:].expand(num_void)]),
        torch.nn.functional.pad(batch.seq_lens, (0, num_void)),
        scale=batch.query.shape[2] ** -0.5,
        max_query_len=num_tokens,
        max_seq_len=400,
        row_counts=torch.tensor([len(batch.seq_lens), num_decodes]),
        **options,
    )
    if small_tiles:
        out = torch.empty(inputs.query.shape)
        attend_decodes(inputs, out, num_rows, DecodeConfig(16, 4, 3, 1, 1))
        attend_prefills(inputs, out, 0, PrefillConfig(16, 16, 4, 3, True))
    else:
        out = kernels.paged_attention(inputs)
    check_equal(out[: batch.query.shape[0]], batch, **options)


@runs_kernels
@pytest.mark.parametrize("small_tiles", [False, True])
@pytest.mark.parametrize(
    ("query_lens", "num_decodes"),
    [([1, 1, 9, 40], 2), ([1, 1, 1], 3), ([33], 0), ([1, 1, 2], 0), ([20, 1, 3], 0), ([1, 1, 1, 1, 17], 3)],
)
def test_a_captured_launch_serves_any_mixture(paged_batch, query_lens, num_decodes, small_tiles):
    seq_lens = [30, 170, 90, 60, 40][: len(query_lens)]
    seq_lens[0] = max(seq_lens[0], query_lens[0])
    batch = paged_batch(query_lens, seq_lens, num_heads=4, num_kv_heads=2, head_dim=16)
    attend_as_captured(batch, 7, num_decodes, 64, small_tiles)


@runs_kernels
@pytest.mark.parametrize("num_decodes", [0, 1, 3])
def test_void_rows_of_a_captured_launch_are_zero(paged_batch, num_decodes):
    batch = paged_batch([1, 1, 1, 5, 3], [0, 40, 0, 0, 9])
    attend_as_captured(batch, 8, num_decodes, 16, True, sinks=random_options(4)["sinks"])


@runs_kernels
@pytest.mark.parametrize("num_decodes", [0, 1])
def test_void_rows_are_zero(paged_batch, num_decodes):
    attend(paged_batch([1, 2, 1], [0, 0, 7]), num_decodes=num_decodes)


@runs_kernels
def test_batch_of_decodes_alone_needs_no_count(paged_batch):
    attend(paged_batch([1] * 6, [1, 16, 17, 130, 3, 64], num_heads=6))


@runs_kernels
def test_rows_of_padding_after_the_last_sequence_are_left_alone(paged_batch):
    from pagewire_kernels.paged_attention import triton as kernels

    batch = paged_batch([1, 20, 30], [50, 40, 30])
    # The last sequence's tokens become padding.
    out = kernels.paged_attention(
        AttentionInputs(
            *tensors(batch)[:3],
            batch.block_tables[:2],
            batch.query_start_loc[:3],
            batch.seq_lens[:2],
            batch.query.shape[2] ** -0.5,
            20,
            50,
            num_decodes=1,
        )
    )
    assert out[:21].isfinite().all()
    assert out[21:].isnan().all()


@runs_kernels
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": -1.0}, "scale must be positive"),
        ({"row_counts": torch.tensor([2, 1, 0])}, "row_counts must be 2 of int64"),
        ({"num_decodes": 3}, "3 decodes in a batch of 2 sequences"),
        ({"sinks": torch.zeros(3)}, "sinks must be contiguous and of shape [4]"),
        ({"alibi_slopes": torch.zeros(4, 1)}, "alibi_slopes must be contiguous and of shape [4]"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(paged_batch, options, message):
    from pagewire_kernels.paged_attention import triton as kernels

    batch = paged_batch([1, 3], [5, 9])
    arguments = {"scale": 1.0, "max_query_len": 3, "max_seq_len": 9} | options
    with pytest.raises(ValueError, match=re.escape(message)):
        kernels.paged_attention(AttentionInputs(*tensors(batch), **arguments))


@runs_kernels
def test_query_of_another_dtype_than_the_cache_is_refused(paged_batch):
    from pagewire_kernels.paged_attention import triton as kernels

    query, *others = tensors(paged_batch([1], [5]))
    with pytest.raises(ValueError, match="float16"):
        kernels.paged_attention(AttentionInputs(query.half(), *others, 1.0, 1, 5))


@runs_kernels
def test_heads_larger_than_the_table_serves_are_refused(paged_batch):
    from pagewire_kernels.paged_attention import triton as kernels

    batch = paged_batch([1], [5], num_heads=1, num_kv_heads=1, head_dim=264)
    with pytest.raises(ValueError, match="264"):
        kernels.paged_attention(AttentionInputs(*tensors(batch), 1.0, 1, 5))
