"""A heap of requests by the time at which their deadlines must be checked."""

import heapq
import itertools
from collections.abc import Iterator

from pagewire_router.scheduling.sequence import SequenceGroup


class Deadlines:
    """Requests by the time at which they must be checked. Those that have ended are dropped."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, SequenceGroup]] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        """Returns the number of entries, those of ended requests included."""
        return len(self._heap)

    def push(self, at_s: float, group: SequenceGroup, num_alive: int) -> None:
        """Adds a request. num_alive: how many there are in all that have not ended."""
        heapq.heappush(self._heap, (at_s, next(self._order), group))
        if len(self._heap) > 2 * num_alive + 64:
            # Most have ended long before their deadline, and must not be kept until then.
            self._heap = [entry for entry in self._heap if not entry[2].is_finished]
            heapq.heapify(self._heap)

    def pop_due(self, now: float) -> Iterator[SequenceGroup]:
        """Removes and yields the requests that are due. More may be added meanwhile."""
        while self._heap and self._heap[0][0] <= now:
            group = heapq.heappop(self._heap)[2]
            if not group.is_finished:
                yield group

    def clear(self) -> None:
        """Forgets all."""
        self._heap.clear()
