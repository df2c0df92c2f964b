"""The states of a sequence, and what moves it between them."""

import pytest
from pagewire_router.scheduling.sequence import ProtocolError, SequenceGroup
from pagewire_router.scheduling.sequence_state import TRANSITIONS, SequenceEvent, SequenceState
from scheduling_world import make_request

S, E = SequenceState, SequenceEvent


def new_sequence(max_tokens=10, prompt_length=5):
    return SequenceGroup(make_request([1] * prompt_length, max_tokens=max_tokens), 100).sequences[0]


def test_a_sequence_runs_is_preempted_runs_again_and_ends():
    sequence = new_sequence()
    states = [sequence.state]
    for event in (E.ADMIT, E.SETTLE, E.PREEMPT, E.ADMIT, E.SETTLE, E.FINISH):
        sequence.on(event)
        states.append(sequence.state)
    assert states == [S.WAITING, S.ADMITTED, S.RUNNING, S.PREEMPTED, S.ADMITTED, S.RUNNING, S.FINISHED]


def test_a_sequence_that_is_forked_from_stays_until_it_is_not_needed():
    sequence = new_sequence()
    for event in (E.ADMIT, E.SETTLE, E.KEEP):
        sequence.on(event)
    assert sequence.is_finished
    sequence.on(E.RELEASE)
    assert sequence.state is S.FINISHED


@pytest.mark.parametrize(
    ("state", "event"),
    [(state, event) for state in SequenceState for event in SequenceEvent if event not in TRANSITIONS[state]],
)
def test_what_is_not_in_the_table_is_refused(state, event):
    sequence = new_sequence()
    sequence.state = state
    with pytest.raises(AssertionError, match=f"{event.name} of a sequence that is {state.name}"):
        sequence.on(event)


def test_every_state_can_be_reached_and_every_life_can_end():
    reached = {S.WAITING}
    for _ in SequenceState:
        reached |= {following for state in reached for following in TRANSITIONS[state].values()}
    assert reached == set(SequenceState)
    assert [state for state, events in TRANSITIONS.items() if not events] == [S.FINISHED]


def test_counts_are_exact_once_the_length_of_the_cached_prefix_is_known():
    """Two chunks of 2 tokens are in flight when the first result says that 1 of 5 prompt tokens was cached."""
    sequence = new_sequence()
    sequence.on(E.ADMIT)
    sequence.enter_shard(1, num_computed_tokens=4, num_tokens=5)
    sequence.run(2)
    sequence.run(2)
    assert (sequence.num_computed_tokens, sequence.num_tokens) == (6, 7), "as if all but one token were cached"
    assert sequence.num_expected_tokens == 4
    sequence.settle(3, 5)
    assert (sequence.num_computed_tokens, sequence.num_tokens) == (5, 6)
    assert sequence.state is S.RUNNING


@pytest.mark.parametrize(("num_computed", "num_missed"), [(4, 0), (3, 1), (1, 3)])
def test_a_guess_is_planned_as_if_it_were_right_and_corrected_by_the_result(num_computed: int, num_missed: int):
    """3 of 5 tokens are expected to be cached, so that a plan sets 2 aside, and the next one token."""
    sequence = new_sequence()
    sequence.on(E.ADMIT)
    sequence.enter_shard(1, num_computed_tokens=4, num_tokens=5, num_guessed_tokens=3)
    sequence.run(1)
    assert sequence.num_likely_computed_tokens == 4
    assert (sequence.num_computed_tokens, sequence.num_tokens) == (5, 6), "blocks are reserved for any hit"
    sequence.run(1)
    assert sequence.num_likely_computed_tokens == 5
    assert sequence.num_missed_tokens(num_computed) == num_missed
    sequence.settle(num_computed, 5)
    assert sequence.num_likely_computed_tokens == sequence.num_computed_tokens == num_computed + 1


def test_rejected_drafts_are_taken_out_of_the_counts():
    sequence = new_sequence()
    sequence.enter_shard(1, num_computed_tokens=5, num_tokens=6)
    sequence.draft(4)
    sequence.draft(2)
    assert (sequence.num_computed_tokens, sequence.num_tokens, sequence.num_unverified_tokens) == (13, 14, 6)
    sequence.verify(4, num_accepted=1)
    assert (sequence.num_computed_tokens, sequence.num_tokens, sequence.num_unverified_tokens) == (10, 11, 2)
    sequence.verify(2, num_accepted=2)
    assert (sequence.num_computed_tokens, sequence.num_tokens, sequence.num_unverified_tokens) == (10, 11, 0)


def test_tokens_come_in_order():
    sequence = new_sequence()
    sequence.enter_shard(1, num_computed_tokens=0, num_tokens=5)
    sequence.append([7, 8], 5)
    sequence.append([9], 7)
    assert sequence.token_ids[5:] == [7, 8, 9]
    for position in (6, 9):
        with pytest.raises(ProtocolError, match=f"position {position} of a sequence with 8 tokens"):
            sequence.append([3], position)
