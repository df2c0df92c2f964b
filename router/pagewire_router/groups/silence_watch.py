"""Tells whether the processes of a group still speak, within a second: a stopped one, or a cut network, says nothing.

Pure: times are passed in, in seconds of one monotonic clock.

Each shard sends a beat every BEAT_S besides what else it has to say, whatever its steps do. While other groups serve,
requests need not wait until gRPC's pings find out, which takes 5 to 10 s: a group that has said nothing for a while is
given up, and its requests go on elsewhere. If its processes were only slow, that has cost a prefill, and they are
allowed twice the time.
"""

from dataclasses import dataclass

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
        self.allowed_s = ALLOWED_S
        self.has_beats = False
        """A beat has come in this epoch. Older versions of the shard send none."""
        self._checked_s = 0.0
        self._silent_incarnation: int | None = None

    def start(self, incarnation: int, now_s: float) -> None:
        """An epoch begins on the shards whose rank 0 has this incarnation."""
        if incarnation == self._silent_incarnation:
            self.allowed_s = min(2 * self.allowed_s, MAX_ALLOWED_S)
        elif self._silent_incarnation is not None:
            self.allowed_s = ALLOWED_S
        self._silent_incarnation = None
        self.has_beats = False
        self._checked_s = now_s
        self.heard_s = [now_s] * len(self.heard_s)

    def check(self, now_s: float) -> Silence | None:
        """The rank that is silent; None: none is. To be called every CHECK_S."""
        late_s = now_s - self._checked_s - CHECK_S
        self._checked_s = now_s
        if late_s > LATE_S:
            self.heard_s = [min(heard_s + late_s, now_s) for heard_s in self.heard_s]
        for rank, heard_s in enumerate(self.heard_s) if self.has_beats else ():
            if now_s - heard_s > self.allowed_s:
                return Silence(rank, now_s - heard_s)
        return None

    def note_silence(self, incarnation: int) -> None:
        """The shards of this incarnation are given up because they say nothing."""
        self._silent_incarnation = incarnation
