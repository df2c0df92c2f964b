"""Tells whether the processes of a group still speak, within a second: a stopped one, or a cut network, says nothing.

Pure: times are passed in, in seconds of one monotonic clock.

Each shard sends a beat every BEAT_S besides what else it has to say, whatever its steps do. While other groups serve,
requests need not wait until gRPC's pings find out, which takes 5 to 10 s: a group that has said nothing for a while is
given up, and its requests go on elsewhere. If its processes were only slow, that has cost a prefill.
"""

from dataclasses import dataclass

from pagewire_common.patience import Checks, Patience

BEAT_S = 0.15
ALLOWED_S = 0.6
MAX_ALLOWED_S = 5.0
"""By then pings find out."""
CHECK_S = 0.1
LATE_S = 0.2
"""A check that is late by so much says that the router itself stood still, and has yet to read what has come."""


@dataclass(frozen=True, slots=True)
class Silence:
    """A rank that says nothing."""

    rank: int
    silent_s: float

    def __str__(self) -> str:
        return f"rank {self.rank} has said nothing for {self.silent_s:.1f} s"


class SilenceWatch:
    """Watches one group. The receiver of the plan stream sets heard_s with each message."""

    def __init__(self, num_ranks: int) -> None:
        self.heard_s = [0.0] * num_ranks
        """Time of the last message of each rank."""
        self.has_beats = False
        """A beat has come in this epoch. Older versions of the shard send none."""
        self.patience = Patience(ALLOWED_S, MAX_ALLOWED_S)
        self._checks = Checks(CHECK_S, LATE_S)

    def start(self, incarnation: int, now_s: float) -> None:
        """An epoch begins on the shards whose rank 0 has this incarnation."""
        self.patience.start(incarnation)
        self.has_beats = False
        self._checks.start(now_s)
        self.heard_s = [now_s] * len(self.heard_s)

    def check(self, now_s: float) -> Silence | None:
        """The rank that is silent; None: none is. To be called every CHECK_S."""
        if lost_s := self._checks.lost_s(now_s):
            self.heard_s = [min(heard_s + lost_s, now_s) for heard_s in self.heard_s]
        for rank, heard_s in enumerate(self.heard_s) if self.has_beats else ():
            if now_s - heard_s > self.patience.allowed_s:
                return Silence(rank, now_s - heard_s)
        return None
