"""How many blocks a sequence takes in the cache groups of a model."""

import pytest
from pagewire_common.block_hash import block_digests, root_digest, table_digest, table_hash, wire_hash
from pagewire_common.cache_groups import CacheGroup, CacheGroups, first_kept_block, table_windows

MIXED = (CacheGroup(0, 1), CacheGroup(8, 5))


@pytest.mark.parametrize(("num_tokens", "first"), [(0, 0), (8, 0), (11, 0), (12, 1), (15, 1), (16, 2)])
def test_the_last_tokens_of_a_window_are_kept(num_tokens: int, first: int) -> None:
    assert first_kept_block(num_tokens, window=8, block_size=4) == first


def test_tables_are_counted_over_all_groups() -> None:
    assert table_windows(MIXED) == (0, 8, 8, 8, 8, 8)
    groups = CacheGroups(4, 64, MIXED)
    assert (groups.num_tables, groups.num_full_tables, groups.num_window_tables) == (6, 1, 5)


@pytest.mark.parametrize("window", [1, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("block_size", [1, 3, 4])
def test_the_bound_holds_while_a_step_runs_and_is_reached(window: int, block_size: int) -> None:
    """However far a sequence is and whatever a step computes of it: it holds its window and the step's tokens."""
    groups = CacheGroups(block_size, 64, (CacheGroup(window, 2),))
    for num_open in (1, 2, 7):
        held = [groups.window_blocks(n + num_open, n) for n in range(60)]
        bounds = [groups.most_window_blocks(n + num_open, num_open) for n in range(60)]
        assert all(few <= most for few, most in zip(held, bounds, strict=True))
        assert max(held) == max(bounds)
        assert all(groups.least_window_blocks(n) <= min(held[n:]) for n in range(40))


@pytest.mark.parametrize("window", [1, 4, 9])
def test_what_is_held_changes_no_earlier_than_is_said(window: int) -> None:
    groups = CacheGroups(4, 64, (CacheGroup(window, 1),))
    for num_tokens in range(40):
        until = groups.num_tokens_until_slide(num_tokens)
        assert until > num_tokens
        assert first_kept_block(until - 1, window, 4) == first_kept_block(num_tokens, window, 4)
        assert first_kept_block(until, window, 4) == first_kept_block(num_tokens, window, 4) + 1


def test_a_prompt_alone_takes_its_window_and_a_chunk() -> None:
    groups = CacheGroups(16, 8192, (CacheGroup(0, 1), CacheGroup(1024, 5)))
    assert groups.max_chunk == 2048
    assert groups.blocks_alone(100_000) == 6250 + 5 * ((1024 + 2048) // 16 + 1)
    assert CacheGroups(16, 8192).blocks_alone(100_000) == 6250


def test_what_children_need_is_kept_until_they_are_forked() -> None:
    groups = CacheGroups(4, 64, (CacheGroup(8, 1),))
    assert groups.chunked_window_blocks(100) == (8 + 64 - 1) // 4 + 2
    assert groups.chunked_window_blocks(100, fork_from=20) == (8 + 80 - 1) // 4 + 2
    assert groups.chunked_window_blocks(100, num_shared=99) == 3


def test_each_table_has_names_of_its_own_for_the_same_tokens() -> None:
    [digest] = block_digests(root_digest(""), [1, 2, 3, 4], 4)
    names = [table_digest(digest, table) for table in range(3)]
    assert names[0] == digest
    assert len(set(names)) == 3
    assert [wire_hash(name) for name in names] == [table_hash(wire_hash(digest), table) for table in range(3)]
