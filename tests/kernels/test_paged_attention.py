"""Attention on the CPU against its reference."""

import pytest
import torch
from pagewire_kernels import kv_cache
from pagewire_kernels.cpu import threads as cpu_threads
from pagewire_kernels.paged_attention import AttentionInputs, paged_attention, reference

TINY = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 4}


@pytest.fixture(params=[1, 2])
def num_threads(request):
    before = torch.get_num_threads()
    cpu_threads.set_num_threads(request.param)
    yield request.param
    cpu_threads.set_num_threads(before)


def check(batch, **options):
    inputs = (batch.block_tables, batch.query_start_loc, batch.seq_lens)
    lens = {"max_query_len": batch.max_query_len, "max_seq_len": batch.max_seq_len}
    scale = batch.query.shape[2] ** -0.5
    caches = kv_cache.to_cpu_layout(batch.key_cache, batch.value_cache)
    out = paged_attention(AttentionInputs(batch.query, *caches, *inputs, scale=scale, **lens, **options))
    expected = reference.paged_attention(
        AttentionInputs(batch.query, batch.key_cache, batch.value_cache, *inputs, scale, **lens, **options)
    )
    assert out.is_contiguous()
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("block_size", [1, 3, 8, 16, 32, 48])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"),
    [(1, 1, 16), (12, 4, 64), (4, 2, 32), (6, 6, 80), (5, 1, 40), (14, 2, 48), (3, 3, 7), (16, 2, 128)],
)
def test_mixed_batch_of_any_shape(paged_batch, num_threads, num_heads, num_kv_heads, head_dim, block_size):
    heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    check(paged_batch([7, 1, 20, 1, 50], [7, 30, 37, 1, 131], block_size=block_size, **heads))


@pytest.mark.parametrize("block_size", [1, 16, 32])
def test_decode_batch(paged_batch, num_threads, block_size):
    check(
        paged_batch([1] * 9, [1, 2, 15, 16, 17, 31, 32, 33, 300], num_heads=12, num_kv_heads=4, block_size=block_size)
    )


def test_context_longer_than_a_strip(paged_batch):
    check(paged_batch([1, 40], [1500, 1300], num_heads=4, num_kv_heads=2))


@pytest.mark.parametrize("head_dim", [16, 20])
@pytest.mark.parametrize("sliding_window", [1, 2, 15, 16, 17, 100, 5000])
def test_sliding_window(paged_batch, sliding_window, head_dim):
    batch = paged_batch([60, 1, 1, 3], [60, 400, 10, 201], head_dim=head_dim)
    check(batch, sliding_window=sliding_window)


def test_slots_before_the_window_may_hold_anything(paged_batch):
    batch = paged_batch([1, 3], [50, 90], block_size=8)
    window = 10
    for row, (seq_len, query_len) in enumerate([(50, 1), (90, 3)]):
        for token in range(seq_len - query_len - window + 1):
            block = batch.block_tables[row, token // 8]
            batch.key_cache[block, token % 8] = float("nan")
            batch.value_cache[block, token % 8] = float("nan")
    inputs = (batch.block_tables, batch.query_start_loc, batch.seq_lens)
    caches = kv_cache.to_cpu_layout(batch.key_cache, batch.value_cache)
    out = paged_attention(
        AttentionInputs(
            batch.query, *caches, *inputs, scale=0.25, max_query_len=3, max_seq_len=90, sliding_window=window
        )
    )
    assert out.isfinite().all()


@pytest.mark.parametrize("logit_softcap", [0.3, 30.0])
def test_logit_softcap(paged_batch, logit_softcap):
    check(paged_batch([5, 1], [33, 20], head_dim=32), logit_softcap=logit_softcap)


@pytest.mark.parametrize(
    "options", [{}, {"sliding_window": 17}, {"logit_softcap": 2.0}, {"sliding_window": 3, "logit_softcap": 0.5}]
)
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 2, 32), (7, 1, 20), (6, 6, 7)])
def test_sinks(paged_batch, num_threads, num_heads, num_kv_heads, head_dim, options):
    heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    batch = paged_batch([5, 1, 1, 40, 2], [33, 1, 300, 131, 0], **heads)
    check(batch, sinks=torch.randn(num_heads, generator=torch.Generator().manual_seed(1)), **options)


def test_sinks_far_above_and_far_below_all_scores(paged_batch):
    check(paged_batch([1, 7], [200, 9], num_heads=4), sinks=torch.tensor([200.0, -200.0, 1e4, -1e4]))


@pytest.mark.parametrize("options", [{}, {"sliding_window": 21}, {"logit_softcap": 2.0}], ids=["", "window", "softcap"])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(6, 2, 32), (5, 5, 20), (3, 1, 64)])
def test_alibi(paged_batch, num_heads, num_kv_heads, head_dim, options):
    heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    slopes = 0.5 ** torch.arange(1, num_heads + 1)
    check(paged_batch([60, 1, 1, 3], [60, 400, 10, 2001], **heads), alibi_slopes=slopes, **options)


def test_large_scores_do_not_overflow(paged_batch):
    batch = paged_batch([4, 1], [20, 40])
    batch.query.mul_(300.0)
    check(batch)


@pytest.mark.parametrize("query_lens", [[1, 1, 1], [1, 4, 2]])
def test_void_rows_are_zero(paged_batch, query_lens):
    batch = paged_batch(query_lens, [4, 0, 7])
    check(batch)


def test_batch_of_void_rows_alone(paged_batch):
    check(paged_batch([1, 2], [0, 0]))


def test_result_of_a_sequence_does_not_depend_on_its_batch(paged_batch):
    alone = paged_batch([1], [77], num_heads=12, num_kv_heads=4, head_dim=64)
    scale = 0.125

    def attend(rows: int, seq_len_beside: int) -> torch.Tensor:
        caches = kv_cache.to_cpu_layout(alone.key_cache, alone.value_cache)
        return paged_attention(
            AttentionInputs(
                alone.query.repeat(rows, 1, 1),
                *caches,
                alone.block_tables.repeat(rows, 1),
                torch.arange(rows + 1, dtype=torch.int32),
                torch.tensor([77] + [seq_len_beside] * (rows - 1), dtype=torch.int32),
                scale=scale,
                max_query_len=1,
                max_seq_len=77,
            )
        )[0]

    assert torch.equal(attend(1, 0), attend(5, 33))


def test_other_dtypes_are_refused(paged_batch):
    batch = paged_batch([1], [3], **TINY)
    inputs = (batch.block_tables, batch.query_start_loc, batch.seq_lens)
    caches = kv_cache.to_cpu_layout(batch.key_cache, batch.value_cache)
    with pytest.raises(ValueError, match="float32"):
        paged_attention(
            AttentionInputs(batch.query.half(), *caches, *inputs, scale=1.0, max_query_len=1, max_seq_len=3)
        )


@pytest.mark.parametrize(
    "options",
    [
        {"alibi_slopes": torch.zeros(2).half()},
        {"sinks": torch.zeros(3)},
        {"sinks": torch.zeros(2, dtype=torch.bfloat16)},
    ],
)
def test_options_that_a_cpu_does_not_take_are_refused_by_name(paged_batch, options):
    batch = paged_batch([1], [3], **TINY)
    inputs = (batch.block_tables, batch.query_start_loc, batch.seq_lens)
    caches = kv_cache.to_cpu_layout(batch.key_cache, batch.value_cache)
    with pytest.raises(ValueError, match=next(iter(options))):
        paged_attention(
            AttentionInputs(batch.query, *caches, *inputs, scale=1.0, max_query_len=1, max_seq_len=3, **options)
        )


def test_number_of_decodes_makes_no_difference(paged_batch):
    check(paged_batch([1, 1, 4], [7, 30, 9]), num_decodes=2)


@pytest.mark.parametrize(("sliding_window", "has_alibi"), [(0, False), (50, False), (150, False), (0, True)])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(6, 2, 32), (4, 4, 20), (16, 1, 64)])
def test_a_query_has_the_same_bits_however_a_prompt_is_cut_up(
    num_heads, num_kv_heads, head_dim, sliding_window, has_alibi
):
    length, block_size = 300, 16
    torch.manual_seed(0)
    caches = kv_cache.allocate(20, block_size, num_kv_heads, head_dim, torch.float32, torch.device("cpu"))
    for cache in caches:
        cache.normal_()
    table = torch.randperm(20, dtype=torch.int32)[None]
    query = torch.randn(length, num_heads, head_dim)

    def attend(first, end):
        return paged_attention(
            AttentionInputs(
                query[first:end],
                *caches,
                table,
                torch.tensor([0, end - first], dtype=torch.int32),
                torch.tensor([end], dtype=torch.int32),
                scale=0.2,
                max_query_len=end - first,
                max_seq_len=end,
                sliding_window=sliding_window,
                alibi_slopes=0.5 ** torch.arange(1, num_heads + 1) if has_alibi else None,
            )
        )

    whole = attend(0, length)
    for chunk in (1, 2, 3, 17, 64, 130):
        parts = [attend(first, min(first + chunk, length)) for first in range(0, length, chunk)]
        assert torch.equal(torch.cat(parts), whole)
