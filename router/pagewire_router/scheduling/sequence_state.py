"""The states of a sequence in the scheduler, and the one table of its transitions.

    WAITING ---- ADMIT --> ADMITTED -- SETTLE --> RUNNING      a request's first sequence
    PREEMPTED -- ADMIT --> ...
    WAITING ---- RESERVE -> FORKING -- FORK ----> RUNNING      its others share what the first has computed
    PREEMPTED -- RESERVE -> ...

PREEMPT takes a sequence off the shard group, for want of blocks or because the group was lost: it waits again with the
tokens it has. FINISH ends it for good. A sequence that others are still to be forked from ends in two steps: KEEP when
it ends, RELEASE when they have been forked.

Anything that is not in the table is a bug of the scheduler.
"""

import enum


class SequenceState(enum.Enum):
    """The state of a sequence."""

    WAITING = enum.auto()
    """It has never been on a shard group."""
    PREEMPTED = enum.auto()
    """It was on a shard group and waits to be admitted again."""
    FORKING = enum.auto()
    """Its request runs, and a slot and blocks are kept for it; it is yet to be forked from another sequence."""
    ADMITTED = enum.auto()
    """It is on the shard group; its first result, which tells how much of it was cached, is not back."""
    RUNNING = enum.auto()
    """It is on the shard group, and its counts are exact unless it stops."""
    KEPT = enum.auto()
    """It has ended, but stays on the shard group because others are still to be forked from it."""
    FINISHED = enum.auto()
    """It has ended."""


class SequenceEvent(enum.Enum):
    """An event that changes a sequence's state."""

    ADMIT = enum.auto()
    RESERVE = enum.auto()
    SETTLE = enum.auto()
    FORK = enum.auto()
    PREEMPT = enum.auto()
    FINISH = enum.auto()
    KEEP = enum.auto()
    RELEASE = enum.auto()


S, E = SequenceState, SequenceEvent

TRANSITIONS: dict[SequenceState, dict[SequenceEvent, SequenceState]] = {
    S.WAITING: {E.ADMIT: S.ADMITTED, E.RESERVE: S.FORKING, E.FINISH: S.FINISHED},
    S.PREEMPTED: {E.ADMIT: S.ADMITTED, E.RESERVE: S.FORKING, E.FINISH: S.FINISHED},
    S.FORKING: {E.FORK: S.RUNNING, E.PREEMPT: S.PREEMPTED, E.FINISH: S.FINISHED},
    S.ADMITTED: {E.SETTLE: S.RUNNING, E.PREEMPT: S.PREEMPTED, E.FINISH: S.FINISHED, E.KEEP: S.KEPT},
    S.RUNNING: {E.PREEMPT: S.PREEMPTED, E.FINISH: S.FINISHED, E.KEEP: S.KEPT},
    S.KEPT: {E.RELEASE: S.FINISHED, E.PREEMPT: S.FINISHED},
    S.FINISHED: {},
}

# Tuples: `in` compares by identity, while the hash of an enum member is computed in Python.
ON_SHARD = (S.RUNNING, S.ADMITTED, S.KEPT)
"""The shard group knows the sequence."""
PREEMPTABLE = (*ON_SHARD, S.FORKING)
"""The sequence takes a slot of the shard group."""
ENDED = (S.KEPT, S.FINISHED)
"""Tokens that still come for the sequence are dropped."""


def next_state(state: SequenceState, event: SequenceEvent) -> SequenceState:
    """The state after an event. Asserts that the event may happen in this state."""
    following = TRANSITIONS[state].get(event)
    assert following is not None, f"{event.name} of a sequence that is {state.name}"
    return following
