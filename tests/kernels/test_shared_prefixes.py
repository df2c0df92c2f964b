"""Which runs of blocks rows share, and the plan by which kernels read each of them once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pagewire_kernels.paged_attention.shared_prefixes import (
    MAX_DEPTH,
    MAX_SHARED_SPLITS,
    PlanLayout,
    SharedRun,
    make_plan,
)
from pagewire_kernels.paged_attention.shared_runs import MIN_SAVED_KEYS, find_runs
from plan_reader import read_plan

BLOCK_SIZE = 64


def layout(max_rows: int, rows_per_tile: int = 4, num_shares: int = 5, tile: int = 64) -> PlanLayout:
    return PlanLayout(max_rows, rows_per_tile, num_shares, tile)


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Block tables of a random tree of prefixes, and how many full blocks each row has; rows in any order."""
    tables: list[list[int]] = []
    next_block = iter(range(1, 1_000_000))

    def grow(prefix: list[int], level: int) -> None:
        prefix = prefix + [next(next_block) for _ in range(draw(st.integers(0, 30)))]
        for _ in range(draw(st.integers(0, 6))):
            tables.append(prefix + [next(next_block) for _ in range(draw(st.integers(1, 5)))])
        if level < 4:
            for _ in range(draw(st.integers(0, 2))):
                grow(prefix, level + 1)

    for _ in range(draw(st.integers(1, 3))):
        grow([], 0)
    tables = draw(st.permutations(tables)) if tables else [[next(next_block)]]
    # The last block of a row may be partly filled, or any number of its last ones not yet computed.
    num_blocks = np.array([draw(st.integers(max(0, len(table) - 3), len(table) - 1)) for table in tables])
    padded = np.full((len(tables), max(map(len, tables))), 2**30, np.int32)
    for row, table in enumerate(tables):
        padded[row, : len(table)] = table
    return padded, num_blocks


def runs_of(tables: np.ndarray, num_blocks: np.ndarray, plan_layout: PlanLayout) -> list[SharedRun]:
    """Row i's table is the one numbered 100 + i."""
    all_tables = np.full((100 + len(tables), tables.shape[1]), -5, np.int32)
    all_tables[100:] = tables
    return find_runs(all_tables, 100 + np.arange(len(tables)), num_blocks, BLOCK_SIZE, plan_layout)


@given(batches())
@settings(deadline=None)
def test_runs_and_what_is_left_are_exactly_a_rows_keys(batch: tuple[np.ndarray, np.ndarray]) -> None:
    tables, num_blocks = batch
    ends = np.zeros(len(tables), int)
    for run in runs_of(tables, num_blocks, layout(len(tables))):
        rows = np.asarray(run.rows)
        first, last = run.begin // BLOCK_SIZE, run.end // BLOCK_SIZE
        assert len(set(rows.tolist())) == len(rows) >= 2
        assert run.begin < run.end
        assert run.begin % BLOCK_SIZE == run.end % BLOCK_SIZE == 0
        assert (ends[rows] == run.begin).all()
        assert (num_blocks[rows] >= last).all()
        assert (tables[rows, first:last] == tables[run.table - 100, first:last]).all()
        assert run.table - 100 in rows
        ends[rows] = run.end


@given(batches())
@settings(deadline=None)
def test_all_sharing_that_pays_is_found(batch: tuple[np.ndarray, np.ndarray]) -> None:
    """With room for all runs, no two rows read a long stretch of the same blocks twice."""
    tables, num_blocks = batch
    ends, depths = np.zeros((2, len(tables)), int)
    for run in runs_of(tables, num_blocks, layout(10 * len(tables))):
        ends[np.asarray(run.rows)] = run.end // BLOCK_SIZE
        depths[np.asarray(run.rows)] += 1
    for a in range(len(tables)):
        for b in range(a):
            most = min(num_blocks[a], num_blocks[b])
            common = int(np.append(tables[a, :most] != tables[b, :most], True).argmax())
            saved = (common - max(ends[a], ends[b])) * BLOCK_SIZE
            assert saved < MIN_SAVED_KEYS or max(depths[a], depths[b]) == MAX_DEPTH


@given(batches(), st.integers(1, 40), st.integers(1, 9), st.sampled_from([16, 64]))
@settings(deadline=None)
def test_a_plan_reads_each_key_of_a_row_once(
    batch: tuple[np.ndarray, np.ndarray], num_shares: int, rows_per_tile: int, tile: int
) -> None:
    tables, num_blocks = batch
    plan_layout = layout(len(tables) + 3, rows_per_tile, num_shares, tile)
    runs = runs_of(tables, num_blocks, plan_layout)
    plan = make_plan(plan_layout, runs)
    assert plan.shape == (plan_layout.num_values,)
    found, keys_of_shares = read_plan(plan_layout, plan)
    own_starts = plan_layout.views(plan)[3][:, 0]
    for row in range(len(tables)):
        pieces = found[row]
        assert len(pieces) <= MAX_SHARED_SPLITS
        end = 0
        for table, first, last in pieces:
            assert first == end
            assert last > first
            assert first % tile == last % tile == 0
            blocks = slice(first // BLOCK_SIZE, -(-last // BLOCK_SIZE))
            assert (tables[table - 100, blocks] == tables[row, blocks]).all()
            end = last
        assert own_starts[row] == end <= num_blocks[row] * BLOCK_SIZE
    assert not own_starts[len(tables) :].any()
    if sum(keys_of_shares) >= 1000 * num_shares:
        assert max(keys_of_shares) <= sum(keys_of_shares) / num_shares + 256, keys_of_shares


def test_a_batch_that_shares_nothing_has_no_runs() -> None:
    tables = np.arange(40).reshape(4, 10)
    assert runs_of(tables, np.full(4, 10), layout(4)) == []
    assert runs_of(tables, np.zeros(4, int), layout(4)) == []
    assert not make_plan(layout(4), []).any()


def test_a_run_that_saves_little_is_read_by_the_rows_below_it() -> None:
    """A block that all share is not worth a run of its own; the long runs behind it begin with it."""
    tables = np.zeros((8, 31), np.int32)
    tables[:, 0] = 1
    for row in range(8):
        tables[row, 1:] = (2 if row < 4 else 3) * 100 + np.arange(30)
    assert MIN_SAVED_KEYS > 7 * BLOCK_SIZE
    runs = runs_of(tables, np.full(8, 31), layout(8))
    assert sorted((run.begin, run.end, *sorted(run.rows)) for run in runs) == [
        (0, 31 * BLOCK_SIZE, 0, 1, 2, 3),
        (0, 31 * BLOCK_SIZE, 4, 5, 6, 7),
    ]


def test_a_block_that_is_not_full_is_not_shared() -> None:
    """A fork shares the parent's last block, which both will copy before they write to it."""
    tables = np.tile(np.arange(20, dtype=np.int32), (6, 1))
    runs = runs_of(tables, np.array([19, 20, 20, 20, 20, 20]), layout(6))
    assert {run.end for run in runs if 0 in run.rows} == {19 * BLOCK_SIZE}


@pytest.mark.parametrize("num_shares", [16, 33])
def test_programs_share_a_tree_out_equally(num_shares: int) -> None:
    """8 prompts of 1,536 tokens, 4 conversations of 512 more under each, 8 requests under each of these."""
    tables = np.zeros((256, 33), np.int32)
    for row in range(256):
        tables[row, :24] = 1000 * (row // 32) + np.arange(24)
        tables[row, 24:32] = 100_000 + 1000 * (row // 8) + np.arange(8)
        tables[row, 32] = 1_000_000 + row
    plan_layout = layout(256, rows_per_tile=32, num_shares=num_shares)
    runs = runs_of(tables, np.full(256, 32), plan_layout)
    assert sorted({(run.end - run.begin, len(run.rows)) for run in runs}) == [(512, 8), (1536, 32)]
    assert len(runs) == 8 + 32
    _, keys = read_plan(plan_layout, make_plan(plan_layout, runs))
    assert max(keys) <= 1.15 * sum(keys) / num_shares
