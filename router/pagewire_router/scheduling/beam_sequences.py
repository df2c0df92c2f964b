"""The sequences that are the beams of one request.

Every step of the search replaces them: what is to go on is forked from the sequences that were scored, and these are
released, all in one plan. Until there are blocks for that plan, the scored sequences stay on the shard group.
"""

from collections.abc import Sequence as Items
from typing import TYPE_CHECKING

from pagewire.v1 import shard_pb2

from pagewire_router.beams.search import BeamSearch, BeamSettings
from pagewire_router.scheduling.sequence_state import SequenceEvent

if TYPE_CHECKING:
    from pagewire_router.scheduling.sequence import Sequence


class BeamSequences:
    """A search, and what it waits for."""

    def __init__(self, settings: BeamSettings, num_prompt_tokens: int) -> None:
        self.search = BeamSearch(settings)
        self.to_fork: list[tuple[Sequence, Sequence]] = []
        """The beams of the next step that are still to be forked, in their order: parent and child."""
        self.num_spare_slots = 0
        """Slots of the shard group that are kept for further beams, while the request runs."""
        self.num_shared_tokens = num_prompt_tokens
        """Leading tokens that all beams share, as of the last preemption."""
        self._scores: dict[Sequence, shard_pb2.RowScores] = {}

    def take(self, sequence: "Sequence", scores: shard_pb2.RowScores, beams: Items["Sequence"]) -> bool:
        """Takes in the scores of one of the beams. Returns whether there are scores of all of them now."""
        self._scores[sequence] = scores
        return len(self._scores) == len(beams)

    def advance(self, beams: Items["Sequence"]) -> list["Sequence"]:
        """Takes a step of the search. Returns the beams that nothing is to be forked from."""
        scores = [(self._scores[beam].token_ids, self._scores[beam].logprobs) for beam in beams]
        self._scores.clear()
        continuations = self.search.advance(scores)
        self.to_fork = [(beams[i], beams[i].child(index, token)) for index, (i, token) in enumerate(continuations)]
        parents = {parent for parent, _ in self.to_fork}
        return [beam for beam in beams if beam not in parents]

    def preempt(self, beams: list["Sequence"]) -> list["Sequence"]:
        """The beams have left the shard group. Returns those that wait to be admitted again."""
        self._scores.clear()
        self.num_spare_slots = 0
        if self.to_fork:
            beams = [child for _, child in self.to_fork]
            self.to_fork = []
            for beam in beams:
                beam.on(SequenceEvent.PREEMPT)
        self.num_shared_tokens = num_common_tokens(beams)
        return beams


def num_common_tokens(sequences: Items["Sequence"]) -> int:
    """Leading tokens that sequences share; of a single one, all of its tokens."""
    # Between the first and the last in order, whatever all others share is shared too.
    first, last = (choose([sequence.token_ids for sequence in sequences]) for choose in (min, max))
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
