"""The lease: one router at a time drives the shard, for a term that it renews, under an epoch that fences earlier ones.

Pure: the clock is passed in, nothing here waits. The plan stream asks, and ends the stream when a lease lapses.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from pagewire_shard.errors import LeaseHeld, LeaseLost, StaleEpoch

WAITING_S = 3.0
"""A router that has asked for the lease within this time counts as waiting. Routers ask about twice a second."""
MAX_WAITING = 64
"""Most routers that are remembered."""


@dataclass(frozen=True, slots=True)
class EpochId:
    """One term of one holder."""

    incarnation: int
    """Picked at random when rank 0's process starts; 64 bits."""
    counter: int
    """Number of the term, which only increases within an incarnation."""

    def __str__(self) -> str:
        return f"{self.incarnation:016x}/{self.counter}"


class Lease:
    """The right to drive this shard.

    Rank 0 of a group grants; the other ranks obey what rank 0 granted. The term starts with the first renewal: what
    lies between grant and Welcome (a step that still runs) is not the router's fault.
    """

    def __init__(self, incarnation: int, term_s: float, clock: Callable[[], float]) -> None:
        self.incarnation = incarnation
        self.term_s = term_s
        self._clock = clock
        self._holder: str | None = None
        self._epoch = EpochId(incarnation, 0)
        self._expires_at_s = -math.inf
        self._released_at_s = clock()
        self._asked_at_s: dict[str, float] = {}
        self._retired_incarnations: set[int] = set()

    @property
    def epoch(self) -> EpochId:
        """The latest term, alive or not."""
        return self._epoch

    @property
    def holder(self) -> str | None:
        """Whoever holds a live lease."""
        return self._holder if self.remaining_s > 0 else None

    @property
    def remaining_s(self) -> float:
        """Time until the lease lapses, at most one term; 0 if nobody holds it."""
        if self._holder is None:
            return 0.0
        return min(max(self._expires_at_s - self._clock(), 0.0), self.term_s)

    @property
    def waiting(self) -> list[str]:
        """Routers other than the holder that have asked for the lease lately, in order of their names."""
        now_s, holder = self._clock(), self.holder
        return sorted(name for name, s in self._asked_at_s.items() if now_s - s <= WAITING_S and name != holder)

    def grant(self, holder: str, *, force: bool = False, min_free_s: float = 0.0) -> EpochId:
        """Starts a new term, if the lease has been free for min_free_s; by force also over a live holder.

        Raises LeaseHeld.
        """
        current = self.holder
        if not force:
            missing_s = min_free_s - self._free_s()
            if current is not None or missing_s > 0:
                self._note_asked(holder)
                raise LeaseHeld(current or "", math.ceil(1000 * (missing_s if current is None else self.remaining_s)))
        return self._start(holder, EpochId(self.incarnation, self._epoch.counter + 1))

    def obey(self, holder: str, epoch: EpochId) -> EpochId:
        """Starts the term that rank 0 granted, whoever held this rank before. Raises StaleEpoch.

        An incarnation never seen before replaces the current one (rank 0 restarted); one that was replaced never
        returns. Within an incarnation the counter must rise.
        """
        last = self._epoch
        if epoch.incarnation in self._retired_incarnations or (
            epoch.incarnation == last.incarnation and epoch.counter <= last.counter
        ):
            raise StaleEpoch(f"epoch {epoch} is over, this rank has seen {last}")
        if epoch.incarnation != last.incarnation:
            self._retired_incarnations.add(last.incarnation)
        return self._start(holder, epoch)

    def check(self, epoch: EpochId) -> None:
        """Raises StaleEpoch unless the epoch is the current one, LeaseLost if it has ended."""
        if epoch != self._epoch:
            raise StaleEpoch(f"the message is of epoch {epoch}, the shard is in {self._epoch}")
        if self._holder is None:
            raise LeaseLost(f"epoch {epoch} has ended")

    def renew(self, epoch: EpochId) -> None:
        """Starts the term anew. A lapsed lease that nobody has taken can still be renewed. Raises as check()."""
        self.check(epoch)
        self._expires_at_s = self._clock() + self.term_s

    def release(self, epoch: EpochId) -> None:
        """Frees the lease if it is still this epoch's; a later holder's is left alone."""
        if epoch == self._epoch and self._holder is not None:
            self._holder = None
            self._released_at_s = self._clock()

    def _free_s(self) -> float:
        """For how long nobody has held the lease; 0 if somebody does."""
        free_since_s = self._released_at_s if self._holder is None else self._expires_at_s
        return max(0.0, self._clock() - free_since_s)

    def _note_asked(self, name: str) -> None:
        now_s = self._clock()
        self._asked_at_s.pop(name, None)
        self._asked_at_s[name] = now_s
        oldest = next(iter(self._asked_at_s))
        if len(self._asked_at_s) > MAX_WAITING or now_s - self._asked_at_s[oldest] > WAITING_S:
            del self._asked_at_s[oldest]

    def _start(self, holder: str, epoch: EpochId) -> EpochId:
        self._holder = holder
        self._epoch = epoch
        self._expires_at_s = math.inf
        return epoch
