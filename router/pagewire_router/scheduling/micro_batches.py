"""Which requests a plan runs if the shard group is a pipeline of several stages.

Stages work on different plans at the same time. A sequence whose next token a plan in flight samples cannot be in
another plan before that token has come back, so plans in flight decode different requests. Each takes its share of
them, as many shares as there are stages: more and smaller ones would make each stage read its weights more often for
the same tokens. Plans beyond that compute prompts, of which several chunks may be in flight. What comes to decode
meanwhile joins the share that is planned next, so that shares stay equal.
"""

from collections.abc import Iterable, Iterator

from pagewire_router.scheduling.plans import PlanInFlight
from pagewire_router.scheduling.sequence import Sequence, SequenceGroup
from pagewire_router.scheduling.sequence_state import SequenceState


def micro_batch(
    running: Iterable[SequenceGroup], inflight: Iterable[PlanInFlight], num_shares: int
) -> Iterator[SequenceGroup]:
    """The requests that the next plan may run, in their order.

    Args:
        running: All that run, most urgent first. Requests behind the last one that was yielded may be taken out.
        num_shares: Stages, or plans in flight if fewer are allowed.
    """
    num_decoding = sum(_num_decoding(group) for group in running)
    share = -(-num_decoding // num_shares) if sum(plan.decodes for plan in inflight) < num_shares else 0
    for group in running:
        if any(_awaits_token(sequence) for sequence in group.sequences):
            continue
        num_sequences = _num_decoding(group)
        if num_sequences and share <= 0:
            continue
        share -= num_sequences
        yield group


def _num_decoding(group: SequenceGroup) -> int:
    """Sequences of a request that compute one token when they run, or would if they did not await it."""
    return sum(
        sequence.state is SequenceState.RUNNING and sequence.num_computed_tokens + 1 >= sequence.num_tokens
        for sequence in group.sequences
    )


def _awaits_token(sequence: Sequence) -> bool:
    """Whether a plan in flight samples the sequence's next token, as far as the router can tell."""
    if not sequence.num_inflight_runs:
        return False
    if sequence.state is SequenceState.RUNNING:
        return sequence.num_tokens > len(sequence.token_ids)
    return sequence.state is SequenceState.ADMITTED and sequence.num_expected_tokens >= sequence.num_admitted_tokens
