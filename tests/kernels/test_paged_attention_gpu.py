"""Attention on a GPU against float64, in captured graphs, and without waiting for the host."""

import itertools

import pytest
import torch
from pagewire_kernels.paged_attention import AttentionInputs, paged_attention, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MAX_ERRORS = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
LLAMA = {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128}


def tensors(batch):
    inputs = [batch.query, batch.key_cache, batch.value_cache]
    inputs += [batch.block_tables, batch.query_start_loc, batch.seq_lens]
    return [tensor.cuda() for tensor in inputs]


def attend(inputs, batch, **options):
    lens = {"max_query_len": batch.max_query_len, "max_seq_len": batch.max_seq_len}
    return paged_attention(AttentionInputs(*inputs, scale=batch.query.shape[2] ** -0.5, **lens, **options))


def relative_errors(out, inputs, batch, **options):
    """Of each sequence, in the Euclidean norm; a void sequence must be zero."""
    precise = [tensor.double() for tensor in inputs[:3]]
    lens = (batch.query.shape[2] ** -0.5, batch.max_query_len, batch.max_seq_len)
    expected = reference.paged_attention(AttentionInputs(*precise, *inputs[3:], *lens, **options))
    errors = []
    for start, end in zip(batch.query_start_loc[:-1].tolist(), batch.query_start_loc[1:].tolist(), strict=True):
        difference = (out[start:end].double() - expected[start:end]).norm()
        errors.append((difference / expected[start:end].norm().clamp(min=1e-30)).item())
    return errors


def check(batch, num_decodes=0, **options):
    inputs = tensors(batch)
    out = attend(inputs, batch, num_decodes=num_decodes, **options)
    errors = relative_errors(out, inputs, batch, **options)
    wrong = {i: error for i, error in enumerate(errors) if not error < MAX_ERRORS[batch.query.dtype]}
    assert not wrong, f"relative errors by sequence: {wrong}; the first {num_decodes} are decodes"


@pytest.mark.parametrize(
    ("block_size", "dtype"),
    # In float32 one that is smaller than a tile and one that is not: these kernels take longest to compile.
    [
        *itertools.product([8, 16, 32, 64, 128], [torch.bfloat16, torch.float16]),
        (8, torch.float32),
        (64, torch.float32),
    ],
    ids=str,
)
def test_mixed_batch_of_any_block_size(paged_batch, block_size, dtype):
    query_lens, seq_lens = [1, 1, 1, 1, 70, 200, 5, 3], [1, 700, 0, 65, 70, 260, 333, 0]
    check(paged_batch(query_lens, seq_lens, block_size=block_size, dtype=dtype, **LLAMA), num_decodes=4)


ANY_HEADS = [(32, 32, 64), (28, 4, 128), (16, 1, 256), (12, 2, 80), (71, 1, 64), (4, 4, 16), (5, 1, 40), (64, 8, 96)]
"""Float16 has the tiles of bfloat16. A float32 kernel takes three times as long to compile: every second shape."""


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "dtype"),
    [*((*heads, torch.bfloat16) for heads in ANY_HEADS), *((*heads, torch.float32) for heads in ANY_HEADS[1::2])],
    ids=str,
)
def test_any_head_size_and_group(paged_batch, num_heads, num_kv_heads, head_dim, dtype):
    heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    check(paged_batch([1, 1, 130, 9], [300, 1, 400, 9], block_size=64, dtype=dtype, **heads), num_decodes=2)


@pytest.mark.parametrize(
    "seq_lens", [[20_000], [4000, 1, 0, 2500], [6000, *[40] * 70], [1000] * 20], ids=lambda x: x[0]
)
def test_decodes_in_splits(paged_batch, seq_lens):
    batch = paged_batch([1] * len(seq_lens), seq_lens, block_size=64, dtype=torch.bfloat16, **LLAMA)
    check(batch, num_decodes=len(seq_lens))


@pytest.mark.parametrize(("query_len", "seq_len"), [(2000, 2000), (512, 3000), (1, 3000), (129, 129)])
def test_prefill_of_a_chunk_after_a_cached_prefix(paged_batch, query_len, seq_len):
    batch = paged_batch([query_len, 2], [seq_len, 40], block_size=64, dtype=torch.bfloat16, **LLAMA)
    check(batch)


@pytest.mark.parametrize(
    ("option", "block_size"),
    [*((name, 64) for name in ("sliding_window", "logit_softcap", "alibi_slopes", "sinks", "all")), ("all", 16)],
)
def test_options(paged_batch, option, block_size):
    batch = paged_batch([1, 1, 300, 40], [1500, 30, 900, 40], block_size=block_size, dtype=torch.bfloat16, **LLAMA)
    generator = torch.Generator().manual_seed(1)
    options = {
        "sliding_window": 200,
        "logit_softcap": 5.0,
        "alibi_slopes": (0.2 * torch.rand(32, generator=generator)).cuda(),
        "sinks": torch.randn(32, generator=generator).bfloat16().cuda(),
    }
    check(batch, num_decodes=2, **(options if option == "all" else {option: options[option]}))


def test_one_captured_graph_serves_any_lengths(paged_batch):
    batches = [
        paged_batch([1] * 4, seq_lens, block_size=64, dtype=torch.bfloat16, **LLAMA)
        for seq_lens in ([3000, 5, 700, 64], [1, 2, 0, 3], [2000, 2000, 2000, 2999], [0, 0, 0, 0])
    ]
    # One pool that holds any of them.
    longest = max(batches, key=lambda batch: len(batch.key_cache))
    buffers = tensors(longest)
    buffers[3] = torch.zeros((4, max(batch.block_tables.shape[1] for batch in batches)), dtype=torch.int32).cuda()

    def fill(batch):
        for buffer, tensor in zip(buffers, tensors(batch), strict=True):
            buffer.zero_()
            buffer[tuple(slice(size) for size in tensor.shape)].copy_(tensor)

    def run():
        return paged_attention(AttentionInputs(*buffers, scale=0.1, max_query_len=1, max_seq_len=3000, num_decodes=4))

    fill(longest)
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    for batch in batches:
        fill(batch)
        graph.replay()
        expected = reference.paged_attention(
            AttentionInputs(*(t.double() for t in buffers[:3]), *buffers[3:], 0.1, 1, 3000)
        )
        error = ((out.double() - expected).norm() / expected.norm().clamp(min=1e-30)).item()
        assert error < MAX_ERRORS[torch.bfloat16], f"lengths {batch.seq_lens.tolist()}: relative error {error}"


@pytest.mark.parametrize(("dtype", "head_dim"), [(torch.bfloat16, 128), (torch.float16, 64), (torch.float32, 128)])
def test_one_captured_graph_serves_any_mixture(paged_batch, dtype, head_dim):
    """Counts are read on the device; rows without tokens and tokens of no row fill the batch up."""
    num_tokens, num_rows = 640, 90
    mixtures = [
        ([1, 1, 1, 70, 300, 5], [700, 0, 65, 70, 1500, 333], 3),
        ([1] * 80, [*range(1, 80), 3000], 80),
        ([640], [640], 0),
        ([1, 64, 64, 1, 2], [9, 64, 2000, 0, 2], 1),
        ([1, 1, 1, 7], [2999, 5, 1, 7], 2),
    ]
    heads = LLAMA | {"head_dim": head_dim}
    batches = [paged_batch(lens, seq_lens, block_size=64, dtype=dtype, **heads) for lens, seq_lens, _ in mixtures]
    longest = max(batches, key=lambda batch: len(batch.key_cache))
    query = torch.zeros((num_tokens, *longest.query.shape[1:]), dtype=dtype, device="cuda")
    caches = [torch.zeros_like(longest.key_cache, device="cuda") for _ in range(2)]
    tables = torch.zeros((num_rows, 64), dtype=torch.int32, device="cuda")
    starts = torch.zeros(num_rows + 1, dtype=torch.int32, device="cuda")
    seq_lens = torch.zeros(num_rows, dtype=torch.int32, device="cuda")
    counts = torch.zeros(2, dtype=torch.int64, device="cuda")

    def run():
        lens = {"max_query_len": num_tokens, "max_seq_len": 4096}
        return paged_attention(
            AttentionInputs(query, *caches, tables, starts, seq_lens, 0.09, **lens, row_counts=counts)
        )

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    for batch, (query_lens, lens, num_decodes) in zip(batches, mixtures, strict=True):
        num_real = batch.query.shape[0]
        query.fill_(torch.nan)[:num_real].copy_(batch.query)
        for cache, values in zip(caches, (batch.key_cache, batch.value_cache), strict=True):
            cache[: len(values)].copy_(values)
        tables.fill_(1 << 30)[: len(lens), : batch.block_tables.shape[1]].copy_(batch.block_tables)
        starts.fill_(num_real)[: len(lens) + 1].copy_(batch.query_start_loc)
        seq_lens.zero_()[: len(lens)].copy_(batch.seq_lens)
        counts.copy_(torch.tensor([len(lens), num_decodes]))
        out.fill_(torch.nan)
        graph.replay()
        precise = (query[:num_real].double(), *(cache.double() for cache in caches))
        rows = (batch.block_tables.cuda(), batch.query_start_loc.cuda(), batch.seq_lens.cuda())
        expected = reference.paged_attention(AttentionInputs(*precise, *rows, 0.09, max(query_lens), 4096))
        error = ((out[:num_real].double() - expected).norm() / expected.norm()).item()
        assert error < MAX_ERRORS[dtype], f"{query_lens} of {lens}, {num_decodes} decodes: relative error {error}"


def test_repeated_launches_give_the_same_bits(paged_batch):
    batch = paged_batch([1] * 3, [5000, 3, 2000], block_size=64, dtype=torch.bfloat16, **LLAMA)
    inputs = tensors(batch)
    first = attend(inputs, batch, num_decodes=3)
    different = sum(not torch.equal(attend(inputs, batch, num_decodes=3), first) for _ in range(300))
    assert different == 0, f"{different} of 300 launches: splits were added before all were written"


def test_a_launch_does_not_wait_for_the_host(paged_batch):
    batch = paged_batch([1, 1, 100], [3000, 40, 100], block_size=64, dtype=torch.bfloat16, **LLAMA)
    inputs = tensors(batch)
    attend(inputs, batch, num_decodes=2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        attend(inputs, batch, num_decodes=2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def attends_on_hopper(inputs, batch, num_decodes=0):
    """What the kernel for Hopper writes over NaN, if that is what the device is; the other tests see to the rest."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs a Hopper GPU")
    hopper_prefill = pytest.importorskip("pagewire_kernels.paged_attention.hopper_prefill")
    out = torch.full(inputs[0].shape, torch.nan, dtype=inputs[0].dtype, device="cuda")
    lens = (batch.max_query_len, batch.max_seq_len)
    attention = AttentionInputs(*inputs, batch.query.shape[2] ** -0.5, *lens)
    assert hopper_prefill.serves(attention)
    hopper_prefill.attend_prefills(attention, out, num_decodes)
    return out


def check_on_hopper(batch, num_decodes=0):
    inputs = tensors(batch)
    out = attends_on_hopper(inputs, batch, num_decodes)
    errors = relative_errors(out, inputs, batch)[num_decodes:]
    wrong = {num_decodes + i: error for i, error in enumerate(errors) if not error < MAX_ERRORS[batch.query.dtype]}
    assert not wrong, f"relative errors by sequence: {wrong}"


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("block_size", "dtype"), [(16, torch.float16), (32, torch.bfloat16), (64, torch.bfloat16),
                                                   (64, torch.float16), (128, torch.bfloat16)])  # fmt: skip
def test_hopper_prefill_of_any_length(paged_batch, block_size, dtype, head_dim):
    query_lens = [1, 63, 64, 65, 128, 130, 500, 7, 3, 40, 300]
    seq_lens = [1, 63, 64, 65, 128, 130, 500, 1000, 0, 333, 1024]
    heads = LLAMA | {"head_dim": head_dim}
    check_on_hopper(paged_batch(query_lens, seq_lens, block_size=block_size, dtype=dtype, **heads))


@pytest.mark.parametrize("group_size", [1, 2, 8, 16, 64])
def test_hopper_prefill_of_any_group(paged_batch, group_size):
    heads = {"num_heads": 2 * group_size, "num_kv_heads": 2, "head_dim": 128}
    batch = paged_batch(
        [1, 1, 130, 33, 5, 256], [9, 700, 400, 33, 0, 256], dtype=torch.bfloat16, block_size=64, **heads
    )
    check_on_hopper(batch, num_decodes=2)


def test_hopper_prefill_with_more_items_than_programs(paged_batch):
    batch = paged_batch([1500, 2, 900], [2100, 0, 901], block_size=64, dtype=torch.bfloat16, **LLAMA)
    check_on_hopper(batch)
    inputs = tensors(batch)
    first = attends_on_hopper(inputs, batch)
    assert all(torch.equal(attends_on_hopper(inputs, batch), first) for _ in range(20))


def test_prefill_takes_the_kernel_for_hopper(paged_batch):
    batch = paged_batch([300, 40], [900, 40], block_size=64, dtype=torch.bfloat16, **LLAMA)
    inputs = tensors(batch)
    assert torch.equal(attend(inputs, batch), attends_on_hopper(inputs, batch))


def test_hopper_prefill_with_sequences_and_rows_that_have_no_work(paged_batch):
    # Two sequences without new tokens, and rows at the end that belong to no sequence.
    batch = paged_batch([40, 1, 200, 30], [40, 64, 900, 30], block_size=64, dtype=torch.bfloat16, **LLAMA)
    inputs = tensors(batch)
    expected = attends_on_hopper(inputs, batch)
    inputs[4] = torch.tensor([0, 40, 40, 240, 240], dtype=torch.int32).cuda()
    inputs[0] = torch.cat((inputs[0][:40], inputs[0][41:241], inputs[0][:300]))
    out = attends_on_hopper(inputs, batch)
    assert torch.equal(out[:40], expected[:40])
    assert torch.equal(out[40:240], expected[41:241])
