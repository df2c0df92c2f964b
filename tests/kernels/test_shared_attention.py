"""Decode attention that reads shared prefixes once, against the reference, in Triton's interpreter or on a GPU.

Every float of torch.empty is NaN, so that a partial result which is added up and was not written is noticed.
"""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interpreter import HAS_GPU, run_in_interpreter, runs_kernels, starts_interpreter
from pagewire_kernels.paged_attention import AttentionInputs, reference
from pagewire_kernels.paged_attention import shared_prefixes as plans
from pagewire_kernels.paged_attention.shared_prefixes import PlanLayout, SharedPrefixes, make_plan
from pagewire_kernels.paged_attention.shared_runs import find_runs

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp2:RuntimeWarning")
DEVICE = "cuda" if HAS_GPU else "cpu"
TOLERANCES = {torch.float32: 1e-5, torch.float16: 3e-3}
PIECE = 32
"""Least keys that runs are cut into here, so that short ones go into several pieces."""

Groups = list[tuple[range | list[int], int]]
"""Rows that share, and how many blocks from the start; longer runs after those they continue."""


@pytest.mark.slow
@starts_interpreter
def test_shared_runs_agree_with_the_reference_in_the_interpreter() -> None:
    run_in_interpreter(__file__)


@pytest.fixture(autouse=True)
def cuts_and_poison(monkeypatch: pytest.MonkeyPatch, poisoned_memory: None) -> None:
    monkeypatch.setattr(plans, "_MIN_PIECE", PIECE)
    monkeypatch.setattr("pagewire_kernels.paged_attention.shared_runs.MIN_SAVED_KEYS", 1)


def shared_tables(batch: Any, groups: Groups) -> torch.Tensor:
    tables = batch.block_tables.clone()
    for rows, num_blocks in groups:
        tables[list(rows), :num_blocks] = tables[rows[0], :num_blocks]
    return tables


def plan_of(tables: torch.Tensor, seq_lens: list[int], block_size: int, layout: PlanLayout) -> np.ndarray:
    """All blocks before that of a row's new token are full."""
    num_blocks = (np.array(seq_lens) - 1).clip(0) // block_size
    runs = find_runs(tables.numpy(), np.arange(len(seq_lens)), num_blocks, block_size, layout)
    assert runs
    return make_plan(layout, runs)


def check(
    batch: Any,
    groups: Groups,
    void: tuple[int, ...] = (),
    num_shares: int = 3,
    block_m: int = 16,
    tile: int = 16,
    extra_rows: int = 0,
    **options: Any,
) -> None:
    """Attends with a plan that was made before the rows `void` had stopped."""
    from pagewire_kernels.paged_attention.triton_decode import attend_decodes
    from pagewire_kernels.tuning.paged_attention import DecodeConfig, SharedConfig

    block_size, num_seqs = batch.key_cache.shape[1], len(batch.seq_lens)
    group_size = batch.query.shape[1] // batch.key_cache.shape[2]
    tables = shared_tables(batch, groups)
    layout = PlanLayout(num_seqs + extra_rows, max(1, block_m // group_size), num_shares, tile)
    plan = torch.from_numpy(plan_of(tables, batch.seq_lens.tolist(), block_size, layout)).to(DEVICE)
    seq_lens = batch.seq_lens.clone()
    seq_lens[list(void)] = 0
    # A void row's table is not copied; the state's still has it.
    own_tables = tables.clone()
    own_tables[list(void)] = 2**30
    rest = (batch.query, batch.key_cache, batch.value_cache, own_tables, batch.query_start_loc, seq_lens)
    inputs = AttentionInputs(
        *(tensor.to(DEVICE) for tensor in rest),
        scale=batch.query.shape[2] ** -0.5,
        max_query_len=1,
        max_seq_len=batch.max_seq_len,
        shared=SharedPrefixes.of(layout, plan, tables.to(DEVICE)),
        **{name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for name, value in options.items()},
    )
    out = torch.empty(batch.query.shape, dtype=batch.query.dtype, device=DEVICE)
    attend_decodes(inputs, out, num_seqs, DecodeConfig(16, 4, 3, 1, 1), SharedConfig(block_m, tile, 4, 3, 1))
    tolerance = TOLERANCES[batch.query.dtype]
    torch.testing.assert_close(out, reference.paged_attention(inputs), atol=tolerance, rtol=tolerance)


@runs_kernels
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("num_shares", [1, 2, 9])
def test_one_prefix_of_all_rows(paged_batch: Any, num_shares: int, dtype: torch.dtype) -> None:
    batch = paged_batch([1] * 6, [200, 161, 170, 300, 165, 177], dtype=dtype)
    check(batch, [(range(6), 10)], num_shares=num_shares)


@runs_kernels
@pytest.mark.parametrize("num_shares", [2, 5])
def test_a_tree_of_prefixes_and_rows_that_share_nothing(paged_batch: Any, num_shares: int) -> None:
    batch = paged_batch([1] * 12, [210, 180, 200, 50, 131, 140, 129, 190, 400, 300, 17, 1], block_size=16)
    check(batch, [(range(8), 3), (range(3), 9), (range(2), 11), (range(4, 7), 8), ([8, 9], 18)], num_shares=num_shares)


@st.composite
def random_trees(draw: st.DrawFn) -> tuple[list[int], Groups, tuple[int, ...]]:
    """Lengths of rows, what they share, and which of them have stopped. Rows have 16 to 25 blocks of 16."""
    num_rows = draw(st.integers(2, 9))
    seq_lens = draw(st.lists(st.integers(16 * 16, 16 * 25), min_size=num_rows, max_size=num_rows))
    groups: Groups = []

    def share(rows: list[int], depth: int) -> None:
        if len(rows) > 1 and depth < 15:
            depth = draw(st.integers(depth + 1, 15))
            groups.append((rows, depth))
            cut = draw(st.integers(1, len(rows)))
            share(rows[:cut], depth)
            share(rows[cut:], depth)

    share(draw(st.permutations(range(num_rows))), 0)
    return seq_lens, groups, tuple(draw(st.lists(st.integers(0, num_rows - 1), max_size=3, unique=True)))


@runs_kernels
@given(random_trees(), st.integers(1, 12), st.sampled_from([16, 32, 64]))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_trees(
    paged_batch: Any, tree: tuple[list[int], Groups, tuple[int, ...]], num_shares: int, tile: int
) -> None:
    seq_lens, groups, void = tree
    batch = paged_batch([1] * len(seq_lens), seq_lens, num_kv_heads=1)
    check(batch, groups, void, num_shares=num_shares, tile=tile)


@runs_kernels
def test_rows_of_a_run_stand_anywhere_in_the_batch(paged_batch: Any) -> None:
    batch = paged_batch([1] * 7, [130, 150, 140, 160, 133, 144, 155])
    check(batch, [([0, 2, 5], 8), ([1, 3, 6], 7)])


@runs_kernels
@pytest.mark.parametrize("void", [(0,), (2, 3), (0, 1, 2, 3, 4)])
def test_rows_that_have_stopped_are_zero_and_leave_the_others_right(paged_batch: Any, void: tuple[int, ...]) -> None:
    check(paged_batch([1] * 5, [200, 161, 170, 300, 165]), [(range(4), 10)], void=void)


@runs_kernels
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 2, 16), (7, 1, 40), (2, 2, 80), (20, 1, 7)])
def test_any_head_size_and_group(paged_batch: Any, num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    check(paged_batch([1] * 5, [100, 70, 90, 66, 81], **heads), [(range(5), 4)], block_m=32)


@runs_kernels
@pytest.mark.parametrize(("block_size", "tile"), [(8, 16), (16, 64), (48, 32), (64, 32), (128, 64)])
def test_any_block_size(paged_batch: Any, block_size: int, tile: int) -> None:
    batch = paged_batch([1] * 4, [321, 290, 400, 270], block_size=block_size)
    check(batch, [(range(4), 120 // block_size + 1), (range(2), 256 // block_size)], tile=tile)


@runs_kernels
@pytest.mark.parametrize("option", ["logit_softcap", "alibi_slopes", "sinks", "all"])
def test_options(paged_batch: Any, option: str) -> None:
    generator = torch.Generator().manual_seed(1)
    slopes, sinks = torch.rand(4, generator=generator), torch.randn(4, generator=generator)
    options = {"logit_softcap": 2.0, "alibi_slopes": slopes, "sinks": sinks}
    batch = paged_batch([1] * 5, [100, 70, 90, 66, 81])
    check(batch, [(range(5), 4)], void=(3,), **(options if option == "all" else {option: options[option]}))


@runs_kernels
def test_a_sliding_window_ignores_the_plan(paged_batch: Any) -> None:
    check(paged_batch([1] * 4, [200, 161, 170, 300]), [(range(4), 10)], sliding_window=40)


@runs_kernels
def test_a_long_run_beside_a_short_suffix_has_no_more_pieces_than_are_added_up(paged_batch: Any) -> None:
    batch = paged_batch([1] * 2, [1041, 1030], num_heads=2, num_kv_heads=1)
    check(batch, [(range(2), 64)], num_shares=60, tile=32)


@runs_kernels
def test_a_plan_for_more_rows_than_the_batch_has(paged_batch: Any) -> None:
    check(paged_batch([1] * 3, [100, 70, 90]), [(range(3), 4)], extra_rows=20)


@runs_kernels
def test_decodes_of_a_mixed_batch_whose_counts_are_on_the_device(paged_batch: Any) -> None:
    """Rows behind the decodes compute several tokens, and the last ones are empty; only decodes are in the plan."""
    from pagewire_kernels.paged_attention.triton import paged_attention
    from pagewire_kernels.paged_attention.triton_shared import plan_layout

    batch = paged_batch([1, 1, 1, 1, 9, 30], [321, 290, 400, 0, 300, 60])
    tables = shared_tables(batch, [(range(3), 17), ([0, 4], 10)]).to(DEVICE)
    heads = {"num_kv_heads": 2, "group_size": 2, "head_dim": 16, "element_bytes": 4}
    layout = plan_layout(torch.device(DEVICE), 8, block_size=16, **heads)
    plan = plan_of(tables[:4].cpu(), [321, 290, 400, 0], 16, layout)
    empty_rows = [torch.full((2,), batch.query_start_loc[-1]), torch.zeros(2, dtype=torch.int32)]
    starts, lens = (
        torch.cat((tensor, more.to(torch.int32)))
        for tensor, more in zip((batch.query_start_loc, batch.seq_lens), empty_rows, strict=True)
    )
    padded = torch.cat((tables, tables[:2]))
    tensors = (batch.query, batch.key_cache, batch.value_cache, padded, starts, lens)
    inputs = AttentionInputs(
        *(tensor.to(DEVICE) for tensor in tensors),
        scale=0.25,
        max_query_len=30,
        max_seq_len=400,
        row_counts=torch.tensor([6, 4], device=DEVICE),
        shared=SharedPrefixes.of(layout, torch.from_numpy(plan).to(DEVICE), tables),
    )
    torch.testing.assert_close(paged_attention(inputs), reference.paged_attention(inputs), atol=1e-5, rtol=1e-5)


@runs_kernels
@pytest.mark.parametrize("runs", ["zeros", "none"])
def test_a_plan_that_shares_nothing(paged_batch: Any, runs: str) -> None:
    from pagewire_kernels.paged_attention.triton import paged_attention
    from pagewire_kernels.paged_attention.triton_shared import plan_layout

    batch = paged_batch([1] * 3, [100, 0, 17])
    heads = {"num_kv_heads": 2, "group_size": 2, "head_dim": 16, "element_bytes": 4}
    layout = plan_layout(torch.device(DEVICE), 8, block_size=16, **heads)
    values = np.zeros(layout.num_values, np.int32) if runs == "zeros" else make_plan(layout, [])
    tables = batch.block_tables.to(DEVICE)
    tensors = (batch.query, batch.key_cache, batch.value_cache, tables, batch.query_start_loc, batch.seq_lens)
    shared = SharedPrefixes.of(layout, torch.from_numpy(values).to(DEVICE), tables)
    inputs = AttentionInputs(*(tensor.to(DEVICE) for tensor in tensors), 0.25, 1, 100, shared=shared)
    torch.testing.assert_close(paged_attention(inputs), reference.paged_attention(inputs), atol=1e-5, rtol=1e-5)


@runs_kernels
def test_more_decodes_than_a_plan_has_rows_are_refused(paged_batch: Any) -> None:
    from pagewire_kernels.paged_attention.triton import paged_attention

    batch = paged_batch([1] * 3, [100, 70, 90])
    layout = PlanLayout(2, 4, 3, 16)
    shared = SharedPrefixes.of(layout, torch.zeros(layout.num_values, dtype=torch.int32), batch.block_tables)
    tensors = (batch.query, batch.key_cache, batch.value_cache, batch.block_tables)
    inputs = AttentionInputs(*tensors, batch.query_start_loc, batch.seq_lens, 0.25, 1, 100, shared=shared)
    with pytest.raises(ValueError, match="has 2 rows, the batch 3"):
        paged_attention(inputs)
