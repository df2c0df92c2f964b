"""The account of draft tokens: blocks for them, and those whose fate the router knows before the shards count by it.

A shard takes over how many drafts of step k were accepted when it applies plan k + max_inflight. The scheduler does so
when it makes that plan, so that both count blocks for the same tokens.
"""

from collections import deque

from pagewire.v1 import shard_pb2

from pagewire_router.scheduling.block_ledger import BlockLedger
from pagewire_router.scheduling.plans import PlanInFlight
from pagewire_router.scheduling.sequence import Sequence


class UnverifiedDrafts:
    """Plans with drafts whose results are back, and whose counts the shards have not taken over yet."""

    def __init__(self) -> None:
        self._plans: deque[PlanInFlight] = deque()
        self._recounted: dict[Sequence, int] = {}
        """Sequences whose counts the shards take over with the next plan, and their seq_ids."""

    def __bool__(self) -> bool:
        return bool(self._plans)

    def clear(self) -> None:
        """A new epoch."""
        self._plans.clear()
        self._recounted.clear()

    def take_over(self, plan: PlanInFlight, up_to_step: int) -> None:
        """The plan is made with which shards take over the counts of plans up to this step."""
        while self._plans and self._plans[0].step <= up_to_step:
            for row in self._plans.popleft().draft_rows:
                if row.sequence.runs_as(row.seq_id):
                    row.sequence.verify(row.num_drafts, row.num_accepted)
                    self._recounted[row.sequence] = row.seq_id
        plan.drafting.update(self._recounted)

    def on_sent(self) -> None:
        """The plan is not empty, so that the shards get it."""
        self._recounted.clear()

    def on_result(self, plan: PlanInFlight, result: shard_pb2.StepResult, ledger: BlockLedger) -> None:
        """Notes how many drafts were accepted, and for how many tokens the shard held blocks."""
        for row in plan.draft_rows:
            row.num_accepted = result.num_sampled_tokens[row.row] - 1
        for sequence, seq_id, num_tokens, num_certain in plan.num_block_tokens:
            if sequence.runs_as(seq_id):
                ledger.rebase(sequence, num_tokens, num_certain)
        if plan.draft_rows:
            self._plans.append(plan)


def reserve_drafts(sequence: Sequence, most: int, ledger: BlockLedger, num_missing: int) -> int:
    """Reserves blocks for the draft tokens that a decoding row verifies, and returns how many there are.

    Args:
        most: Draft tokens that it may verify.
        num_missing: Blocks that running sequences lack: drafts take none of these.
    """
    num_drafts = min(most, sequence.max_len - 1 - sequence.num_tokens)
    if ledger.has_windows:
        num_drafts = min(num_drafts, ledger.max_drafts_in_windows - sequence.num_unverified_tokens)
    if num_drafts <= 0 or sequence.group.request.grammar:  # No mask says what may follow a draft.
        return 0
    num_computed = sequence.num_computed_tokens + 1 + num_drafts
    num_more = ledger.num_missing(sequence, num_computed)
    if num_more and num_more > ledger.available - num_missing:
        return 0
    ledger.reserve(sequence, num_more, num_computed)
    return num_drafts
