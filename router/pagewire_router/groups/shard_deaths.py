"""Counts the shard processes of a group that have died over requests: one of these may be the cause."""

from pagewire_router.scheduling.sequence import SequenceGroup
from pagewire_router.scheduling.suspects import note_death


class ShardDeaths:
    """The deaths of one group's shards. See scheduling/suspects.py for what follows from them."""

    def __init__(self) -> None:
        self._lost: list[SequenceGroup] = []
        """Requests that were in flight when the last epoch ended without a reason."""
        self.incarnation = 0
        """Of the shard process that was driven last; 0: none was."""

    def on_lost(self, groups: list[SequenceGroup]) -> None:
        """An epoch has ended without a reason, with these requests in flight."""
        self._lost = groups

    def is_lost(self, group: SequenceGroup) -> bool:
        """Whether the request was in flight when the last epoch ended without a reason."""
        return group in self._lost

    def on_epoch(self, incarnation: int) -> None:
        """An epoch begins: if it is another process's, the last one has died. Condemns the requests that it died over
        too often."""
        lost, self._lost = [group for group in self._lost if not group.is_finished], []
        if self.incarnation not in (0, incarnation):
            alone = len(lost) == 1 and lost[0].suspicion is not None
            for group in lost:
                if note_death(group, alone=alone):
                    group.is_condemned = True
        self.incarnation = incarnation
