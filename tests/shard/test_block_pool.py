"""The block pool by itself: what is taken first, who may write where, and what the prefix index finds."""

import pytest
from pagewire_common.block_hash import Digest, block_digests, root_digest, wire_hash
from pagewire_shard.engine.block_pool import BlockPool, OutOfBlocks

BLOCK_SIZE = 4


def digests(*contents: int) -> list[Digest]:
    """The digests of a sequence whose blocks hold one token each, repeated."""
    token_ids = [token for token in contents for _ in range(BLOCK_SIZE)]
    return block_digests(root_digest(""), token_ids, BLOCK_SIZE)


def cached(pool: BlockPool, *contents: int) -> list[int]:
    """Blocks of a sequence that has come and gone: free, but still in the prefix index."""
    blocks = [pool.allocate() for _ in contents]
    for block, digest in zip(blocks, digests(*contents), strict=True):
        pool.index(block, digest)
    pool.release(blocks)
    return blocks


def test_empty_blocks_are_taken_first_then_the_least_recently_used_cached_one() -> None:
    pool = BlockPool(5, BLOCK_SIZE)
    old = cached(pool, 1)
    new = cached(pool, 2)
    assert (pool.num_free, pool.num_cached) == (5, 2)
    taken = [pool.allocate() for _ in range(5)]
    assert set(taken[:3]).isdisjoint(old + new)
    assert taken[3:] == old + new
    assert (pool.num_free, pool.num_cached) == (0, 0)
    with pytest.raises(OutOfBlocks):
        pool.allocate()


def test_use_makes_a_cached_block_the_last_to_be_evicted() -> None:
    pool = BlockPool(2, BLOCK_SIZE)
    first, second = cached(pool, 1) + cached(pool, 2)
    pool.share([first])
    pool.release([first])
    assert [pool.allocate(), pool.allocate()] == [second, first]


def test_the_tail_of_a_sequence_is_evicted_before_its_head() -> None:
    pool = BlockPool(3, BLOCK_SIZE)
    blocks = cached(pool, 1, 2, 3)
    assert [pool.allocate() for _ in range(3)] == blocks[::-1]


def test_a_block_is_free_when_its_last_holder_lets_go() -> None:
    pool = BlockPool(1, BLOCK_SIZE)
    block = pool.allocate()
    pool.share([block])
    assert (pool.num_holders(block), pool.is_shared(block)) == (2, True)
    pool.release([block])
    assert (pool.num_holders(block), pool.is_shared(block), pool.num_free) == (1, False, 0)
    pool.release([block])
    assert pool.num_free == 1
    pool.check_whole()
    with pytest.raises(AssertionError, match="released more often than held"):
        pool.release([block])


def test_a_block_is_written_in_place_only_by_its_one_holder_and_while_nobody_can_find_it() -> None:
    pool = BlockPool(2, BLOCK_SIZE)
    shared, full = pool.allocate(), pool.allocate()
    assert pool.is_writable(shared)
    pool.share([shared])
    assert not pool.is_writable(shared)
    pool.release([shared])
    assert pool.is_writable(shared)
    pool.index(full, digests(1)[0])
    assert not pool.is_writable(full)
    pool.forget([full])
    assert pool.is_writable(full)


def test_a_prefix_is_found_until_its_block_is_taken_for_another() -> None:
    pool = BlockPool(2, BLOCK_SIZE)
    head, tail = digests(1, 2)
    blocks = cached(pool, 1, 2)
    assert [pool.lookup(head), pool.lookup(tail)] == blocks
    pool.share([blocks[0]])
    assert pool.num_free == 1, "a cached block that is used again is no longer free"
    pool.allocate()
    assert [pool.lookup(head), pool.lookup(tail)] == [blocks[0], None]


def test_content_that_is_found_already_stays_with_its_block() -> None:
    pool = BlockPool(2, BLOCK_SIZE)
    first, second = pool.allocate(), pool.allocate()
    for block in (first, second):
        pool.index(block, digests(1)[0])
    assert pool.lookup(digests(1)[0]) == first
    assert pool.is_writable(second)


def test_forgotten_blocks_are_taken_before_cached_ones() -> None:
    pool = BlockPool(3, BLOCK_SIZE)
    blocks = cached(pool, 1, 2, 3)
    pool.forget([blocks[0]])
    assert pool.lookup(digests(1)[0]) is None
    assert pool.allocate() == blocks[0]


def test_what_enters_and_leaves_the_index_is_told_once() -> None:
    pool = BlockPool(1, BLOCK_SIZE)
    (digest,) = digests(1)
    cached(pool, 1)
    assert pool.cached_hashes() == [wire_hash(digest)]
    assert pool.take_index_changes() == ([wire_hash(digest)], [])
    pool.allocate()
    assert pool.take_index_changes() == ([], [wire_hash(digest)])
    assert pool.take_index_changes() == ([], [])


def test_a_block_that_leaves_the_index_and_enters_it_again_is_not_told() -> None:
    """Whoever keeps a copy of the index must not take it for gone."""
    pool = BlockPool(1, BLOCK_SIZE)
    cached(pool, 1)
    pool.take_index_changes()
    (block,) = [pool.allocate()]  # Evicts it.
    pool.index(block, digests(1)[0])
    assert pool.take_index_changes() == ([], [])
    pool.release([block])
    pool.release([pool.allocate()])
    cached(pool, 2)
    pool.allocate()
    hashes = [wire_hash(digest) for digest in digests(1)]
    assert pool.take_index_changes() == ([], hashes), "the second block came and went unseen"


def test_nothing_is_found_after_all_is_forgotten() -> None:
    pool = BlockPool(3, BLOCK_SIZE)
    cached(pool, 1, 2)
    pool.forget_all()
    assert (pool.num_cached, pool.num_free, pool.lookup(digests(1)[0])) == (0, 3, None)
    pool.check_whole()
