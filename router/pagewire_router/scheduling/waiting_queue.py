"""Requests that wait for a shard group, in order of admission.

The order is a single number, fixed when a request arrives: when it is due. A request is due at its deadline, or
PATIENCE_S after its arrival if that is sooner; each level of priority is worth LEVEL_S. So a lower priority number goes
first, then the nearer deadline, then the earlier arrival; and since newcomers are due ever later, nobody starves.
"""

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator

from pagewire_router.request import Request
from pagewire_router.scheduling.sequence import SequenceGroup

PATIENCE_S = 60.0
"""A deadline moves a request forward by at most so much."""
LEVEL_S = 300.0
"""Newcomers of the next more urgent priority overtake a request for at most so long."""
BIN_S = 0.5
"""Width of the bins in which expected tokens are summed by the time requests are due."""

_Heap = list[tuple[float, int, SequenceGroup]]
"""Entries by queue_key, then in the order in which they were pushed."""


def queue_key(request: Request) -> float:
    """The place of a request in the queue: lower goes first."""
    due_s = request.arrival_s + PATIENCE_S
    if request.deadline_s is not None:
        due_s = min(due_s, request.deadline_s)
    return request.priority * LEVEL_S + due_s


class WaitingQueue:
    """Heaps of sequence groups by queue_key; removal is lazy, so that every operation is O(log n), amortized."""

    def __init__(self) -> None:
        self._few: _Heap = []
        self._many: _Heap = []
        """Those that ask for many log-probabilities, which may be left in the queue while others are taken."""
        self._order = itertools.count()
        self._entries: dict[SequenceGroup, int] = {}
        self.num_tokens = 0
        """Tokens that all who wait have come with."""
        self.num_sequences = 0
        self._expected: defaultdict[int, float] = defaultdict(float)
        """Tokens that waiting requests are expected to yield, by bins of their keys; no bin is empty."""
        self._num_in_bin: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, group: SequenceGroup) -> bool:
        return group in self._entries

    def __iter__(self) -> Iterator[SequenceGroup]:
        return iter(list(self._entries))

    @property
    def num_expected_tokens(self) -> float:
        """Tokens that all who wait are expected to yield."""
        return sum(self._expected.values())

    def tokens_ahead(self, key: float) -> float:
        """Tokens that requests due before `key` are expected to yield. Cost does not grow with the queue's length."""
        last = key // BIN_S
        return sum(tokens for index, tokens in self._expected.items() if index <= last)

    def push(self, group: SequenceGroup) -> None:
        """Adds a request."""
        group.queue_key = queue_key(group.request)
        order = next(self._order)
        self._entries[group] = order
        self._count(group, 1)
        heap = self._many if group.num_many_logprobs else self._few
        heapq.heappush(heap, (group.queue_key, order, group))
        if len(heap) > 2 * len(self._entries) + 64:
            heap[:] = [entry for entry in heap if self._entries.get(entry[2]) == entry[1]]
            heapq.heapify(heap)

    def remove(self, group: SequenceGroup) -> None:
        """Removes a request."""
        del self._entries[group]
        self._count(group, -1)

    def pop(self, *, only_few_logprobs: bool = False) -> SequenceGroup | None:
        """Removes and returns the first request; None if the queue is empty.

        Args:
            only_few_logprobs: passes over requests that ask for many log-probabilities, however many there are.
        """
        heap, has_few = self._few, self._has(self._few)
        if not only_few_logprobs and self._has(self._many) and not (has_few and self._few[0] < self._many[0]):
            heap = self._many
        elif not has_few:
            return None
        group = heapq.heappop(heap)[2]
        self.remove(group)
        return group

    def _has(self, heap: _Heap) -> bool:
        """Whether a request waits in the heap, which is then the first one there."""
        while heap and self._entries.get(heap[0][2]) != heap[0][1]:
            heapq.heappop(heap)
        return bool(heap)

    def _count(self, group: SequenceGroup, sign: int) -> None:
        self.num_tokens += sign * group.request.num_known_tokens
        self.num_sequences += sign * group.request.num_sequences
        index = int(group.queue_key // BIN_S)
        self._num_in_bin[index] += sign
        if self._num_in_bin[index]:
            self._expected[index] += sign * group.expected_tokens
        else:
            del self._num_in_bin[index], self._expected[index]
