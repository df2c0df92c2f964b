"""How many blocks a sequence may take, and how many of the pool can still be promised."""

import pytest
from pagewire_router.errors import RequestTooLong
from pagewire_router.scheduling.block_ledger import BlockLedger, GroupLimits, num_blocks_of_group
from pagewire_router.scheduling.sequence import SequenceGroup
from scheduling_world import make_request

BLOCK_SIZE = 4


@pytest.fixture
def ledger():
    return BlockLedger(BLOCK_SIZE, free=10)


@pytest.fixture
def sequence():
    """On the shard with a prompt of 6 tokens, up to 20."""
    sequence = SequenceGroup(make_request([1] * 6, max_tokens=14), 100).sequences[0]
    sequence.enter_shard(1, num_computed_tokens=6, num_tokens=7)
    return sequence


@pytest.mark.parametrize(("num_computed_tokens", "num_blocks"), [(1, 2), (6, 2), (8, 2), (9, 3), (20, 5), (23, 5)])
def test_the_bound_has_room_for_the_prompt_and_never_beyond_the_longest_length(
    ledger, sequence, num_computed_tokens, num_blocks
):
    assert ledger.bound(sequence, num_computed_tokens) == num_blocks


def test_a_next_write_to_a_shared_block_takes_one_block_more(ledger, sequence):
    sequence.next_write_block_shared = True
    assert ledger.bound(sequence, 8) == 3
    ledger.rebase(sequence, 6)
    assert (sequence.num_reserved_blocks, sequence.num_held_blocks) == (3, 2)
    assert sequence.num_reserved_tokens == 8, "the copy brings no room"
    assert ledger.available == 10 - 1


def test_what_is_reserved_beyond_what_is_held_is_not_available(ledger, sequence):
    ledger.set(sequence, num_reserved=2, num_held=0)
    assert ledger.available == 8
    ledger.reserve(sequence, ledger.num_missing(sequence, 9), 9)
    assert ledger.available == 7
    ledger.free = 8  # The result: the sequence holds 2 blocks now.
    sequence.num_computed_tokens = 9
    ledger.rebase(sequence, 6)
    assert (sequence.num_reserved_blocks, sequence.num_held_blocks) == (3, 2)
    assert ledger.available == 7


def test_nothing_is_missing_while_the_reserved_blocks_have_room(ledger, sequence):
    ledger.set(sequence, num_reserved=3, num_held=1)
    assert sequence.num_reserved_tokens == 12
    assert [ledger.num_missing(sequence, n) for n in (12, 13, 17)] == [0, 1, 2]


def test_a_sequence_that_is_forgotten_counts_no_more(ledger, sequence):
    ledger.set(sequence, num_reserved=5, num_held=2)
    ledger.forget(sequence)
    assert ledger.available == ledger.free


def test_blocks_of_rejected_drafts_are_given_back(ledger, sequence):
    """The shard does so when it applies the next plan, which may take them for others."""
    sequence.draft(4)
    num_computed = sequence.num_computed_tokens
    ledger.reserve(sequence, ledger.num_missing(sequence, num_computed), num_computed)
    ledger.rebase(sequence, 11)
    assert (sequence.num_reserved_blocks, sequence.num_held_blocks) == (3, 3)
    before = ledger.available
    sequence.verify(4, num_accepted=0)
    ledger.rebase(sequence)
    assert (sequence.num_reserved_blocks, sequence.num_held_blocks) == (2, 3)
    assert ledger.available == before + 1
    assert ledger.num_missing(sequence, 11) == 1, "to grow again it needs the block again"
    ledger.rebase(sequence, sequence.num_computed_tokens)
    assert (sequence.num_reserved_blocks, sequence.num_held_blocks) == (2, 2)


@pytest.mark.parametrize(
    ("lengths", "num_shared_tokens", "num_blocks"),
    [([9], 8, 3), ([9, 9], 8, 4), ([9, 9], 7, 5), ([5, 13], 4, 5)],
)
def test_sequences_of_a_request_share_the_full_blocks_of_their_common_tokens(lengths, num_shared_tokens, num_blocks):
    assert num_blocks_of_group(lengths, num_shared_tokens, BLOCK_SIZE) == num_blocks


def test_a_request_that_fits_to_the_last_block_is_taken_and_one_token_more_is_refused():
    limits = GroupLimits(num_blocks=5, block_size=4, max_num_seqs=2, max_num_batched_tokens=8, max_model_len=100)
    limits.check_fits(make_request([1] * 6, max_tokens=14))
    with pytest.raises(RequestTooLong, match="6 blocks of 4 tokens; the KV cache has 5"):
        limits.check_fits(make_request([1] * 6, max_tokens=15))
    with pytest.raises(RequestTooLong, match="3 sequences"):
        limits.check_fits(make_request([1], max_tokens=1, n=3))
