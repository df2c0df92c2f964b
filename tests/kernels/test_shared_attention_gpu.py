"""Decode attention that reads shared prefixes once, on a GPU: real shapes against float64, and in captured graphs."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pagewire_kernels.paged_attention import AttentionInputs, paged_attention, reference
from pagewire_kernels.paged_attention.shared_prefixes import SharedPrefixes, make_plan
from pagewire_kernels.paged_attention.shared_runs import find_runs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MAX_ERRORS = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
LLAMA = {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128}
Groups = list[tuple[list[int], int]]
"""Rows that share, and how many blocks from the start; longer runs after those they continue."""


def inputs_of(batch: Any, groups: Groups) -> AttentionInputs:
    """The batch with a plan, as the runner makes it."""
    from pagewire_kernels.paged_attention.triton_shared import plan_layout

    tables = batch.block_tables.clone()
    for rows, num_blocks in groups:
        tables[rows, :num_blocks] = tables[rows[0], :num_blocks]
    block_size, num_kv_heads, head_dim = batch.key_cache.shape[1:]
    layout = plan_layout(
        torch.device("cuda"),
        len(tables),
        num_kv_heads=num_kv_heads,
        group_size=batch.query.shape[1] // num_kv_heads,
        head_dim=head_dim,
        element_bytes=batch.query.element_size(),
        block_size=block_size,
    )
    full = (batch.seq_lens.numpy() - 1).clip(0) // block_size
    plan = make_plan(layout, find_runs(tables.numpy(), np.arange(len(tables)), full, block_size, layout))
    assert plan.any() or not groups
    tensors = (batch.query, batch.key_cache, batch.value_cache, tables, batch.query_start_loc, batch.seq_lens)
    return AttentionInputs(
        *(tensor.cuda() for tensor in tensors),
        scale=head_dim**-0.5,
        max_query_len=1,
        max_seq_len=batch.max_seq_len,
        shared=SharedPrefixes.of(layout, torch.from_numpy(plan).cuda(), tables.cuda()),
    )


def check(out: torch.Tensor, inputs: AttentionInputs) -> None:
    """Each row's relative error in the Euclidean norm against float64; void rows must be zero."""
    caches = {name: getattr(inputs, name).double() for name in ("query", "key_cache", "value_cache")}
    expected = reference.paged_attention(replace(inputs, shared=None, **caches)).flatten(1)
    errors = (out.flatten(1).double() - expected).norm(dim=1) / expected.norm(dim=1).clamp(min=1e-30)
    bound = MAX_ERRORS[inputs.query.dtype]
    assert (errors < bound).all(), {i: error for i, error in enumerate(errors.tolist()) if not error < bound}


@pytest.mark.parametrize("dtype", list(MAX_ERRORS), ids=str)
@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
def test_a_tree_at_the_shape_of_llama(paged_batch: Any, block_size: int, dtype: torch.dtype) -> None:
    batch = paged_batch(
        [1] * 40, [1200 + 7 * i for i in range(38)] + [1, 40], block_size=block_size, dtype=dtype, **LLAMA
    )
    groups = [
        (list(range(36)), 512 // block_size),
        (list(range(9)), 1024 // block_size),
        ([20, 30], 1152 // block_size),
    ]
    inputs = inputs_of(batch, groups)
    check(paged_attention(inputs), inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"),
    [(32, 8, 64), (32, 32, 64), (28, 4, 128), (16, 1, 256), (12, 2, 80), (71, 1, 64), (5, 1, 40)],
)
def test_any_head_size_and_group(
    paged_batch: Any, num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    batch = paged_batch([1] * 20, [700 + i for i in range(20)], block_size=64, dtype=dtype, **heads)
    inputs = inputs_of(batch, [(list(range(20)), 8)])
    check(paged_attention(inputs), inputs)


@pytest.mark.parametrize("option", ["logit_softcap", "alibi_slopes", "sinks", "sliding_window"])
def test_options(paged_batch: Any, option: str) -> None:
    generator = torch.Generator().manual_seed(1)
    options = {
        "sliding_window": 200,
        "logit_softcap": 5.0,
        "alibi_slopes": (0.2 * torch.rand(32, generator=generator)).cuda(),
        "sinks": torch.randn(32, generator=generator).bfloat16().cuda(),
    }
    batch = paged_batch([1] * 20, [700 + i for i in range(20)], block_size=64, dtype=torch.bfloat16, **LLAMA)
    inputs = replace(inputs_of(batch, [(list(range(20)), 8)]), **{option: options[option]})
    check(paged_attention(inputs), inputs)


def test_one_captured_graph_serves_any_tree_and_rows_that_stop(paged_batch: Any) -> None:
    batch = paged_batch([1] * 24, [1100 + 30 * i for i in range(24)], block_size=64, dtype=torch.bfloat16, **LLAMA)
    trees: list[Groups] = [
        [],
        [(list(range(24)), 16)],
        [(list(range(12)), 10), (list(range(6)), 16), ([13, 23], 20)],
    ]
    cases = [inputs_of(batch, groups) for groups in trees]
    static = cases[1]
    assert static.shared is not None

    def values(shared: SharedPrefixes) -> list[torch.Tensor]:
        return [shared.shares, shared.items, shared.entries, shared.rows, shared.block_tables]

    paged_attention(static)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = paged_attention(static)
    originals = [
        [tensor.clone() for tensor in (*values(case.shared), case.block_tables)] for case in cases if case.shared
    ]
    for original in originals:
        for void in ([], [0, 3, 23], list(range(24))):
            for target, source in zip((*values(static.shared), static.block_tables), original, strict=True):
                target.copy_(source)
            static.seq_lens.copy_(batch.seq_lens)
            static.seq_lens[void] = 0
            # Tables of rows that have stopped are not copied.
            static.block_tables[void] = 2**30
            graph.replay()
            check(out, static)


def test_repeated_launches_give_the_same_bits(paged_batch: Any) -> None:
    batch = paged_batch([1] * 40, [1200 + 7 * i for i in range(40)], block_size=64, dtype=torch.bfloat16, **LLAMA)
    inputs = inputs_of(batch, [(list(range(40)), 8), (list(range(10)), 16)])
    first = paged_attention(inputs)
    assert all(torch.equal(paged_attention(inputs), first) for _ in range(100))
