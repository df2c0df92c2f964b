"""Requests that wait for a shard group, in order of admission.

The order of one client's requests is a single number, fixed when a request arrives: when it is due. A request is due at
its deadline, or PATIENCE_S after its arrival if that is sooner; each level of priority is worth LEVEL_S. So a lower
priority number goes first, then the nearer deadline, then the earlier arrival; and since newcomers are due ever later,
nobody starves.

Clients take turns: of those whose first requests are equally urgent, the one that has been given least goes first
(fair_shares.py). Requests that had their turn keep it: those that were admitted before, and those that were passed
over. A client alone pays nothing for this.
"""

import heapq
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator

from pagewire_router.request import Request
from pagewire_router.scheduling.fair_shares import FairShares
from pagewire_router.scheduling.sequence import SequenceGroup

PATIENCE_S = 60.0
"""A deadline moves a request forward by at most so much."""
LEVEL_S = 300.0
"""Newcomers of the next more urgent priority overtake a request for at most so long."""
BIN_S = 0.5
"""Width of the bins in which expected tokens are summed by the time requests are due."""
MAX_CLIENTS = 128
"""Clients that take turns. What further ones ask for waits in one line, which takes turns as a client does."""
OTHERS = "\0others"
"""The name of that line."""

_Heap = list[tuple[float, int, SequenceGroup]]
"""Entries by queue_key, then in the order in which they were pushed."""


def queue_key(request: Request) -> float:
    """The place of a request among its client's: lower goes first."""
    due_s = request.arrival_s + PATIENCE_S
    if request.deadline_s is not None:
        due_s = min(due_s, request.deadline_s)
    return request.priority * LEVEL_S + due_s


class ClientLine:
    """One client's requests: heaps by queue_key; removal is lazy, so that every operation is O(log n), amortized."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.weight = 1.0
        """As the request that came last has it."""
        self._few: _Heap = []
        self._many: _Heap = []
        """Those that ask for many log-probabilities, which may be left in the queue while others are taken."""
        self._orders: dict[SequenceGroup, int] = {}
        self._expected: defaultdict[int, float] = defaultdict(float)
        """Tokens that its requests are expected to yield, by bins of their keys; no bin is empty."""
        self._num_in_bin: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._orders)

    @property
    def num_expected_tokens(self) -> float:
        """Tokens that its requests are expected to yield."""
        return sum(self._expected.values())

    def tokens_ahead(self, key: float) -> float:
        """Tokens that requests due before `key` are expected to yield. Cost does not grow with the line's length."""
        last = key // BIN_S
        return sum(tokens for index, tokens in self._expected.items() if index <= last)

    def push(self, group: SequenceGroup, order: int) -> None:
        """Adds a request."""
        self.weight = group.request.weight
        self._orders[group] = order
        self._count(group, 1)
        heap = self._many if group.num_many_logprobs else self._few
        heapq.heappush(heap, (group.queue_key, order, group))
        if len(heap) > 2 * len(self._orders) + 64:
            heap[:] = [entry for entry in heap if self._orders.get(entry[2]) == entry[1]]
            heapq.heapify(heap)

    def remove(self, group: SequenceGroup) -> None:
        """Removes a request."""
        del self._orders[group]
        self._count(group, -1)

    def first(self, *, only_few_logprobs: bool) -> SequenceGroup | None:
        """Its first request; None: there is none."""
        few, has_few = self._few, self._has(self._few)
        if not only_few_logprobs and self._has(self._many) and not (has_few and few[0] < self._many[0]):
            return self._many[0][2]
        return few[0][2] if has_few else None

    def _has(self, heap: _Heap) -> bool:
        """Whether a request waits in the heap, which is then the first one there."""
        while heap and self._orders.get(heap[0][2]) != heap[0][1]:
            heapq.heappop(heap)
        return bool(heap)

    def _count(self, group: SequenceGroup, sign: int) -> None:
        index = int(group.queue_key // BIN_S)
        self._num_in_bin[index] += sign
        if self._num_in_bin[index]:
            self._expected[index] += sign * group.expected_tokens
        else:
            del self._num_in_bin[index], self._expected[index]


class WaitingQueue:
    """The lines of all clients."""

    def __init__(self) -> None:
        self.shares = FairShares()
        self._lines: dict[str, ClientLine] = {}
        """By client; none is empty."""
        self._line_of: dict[SequenceGroup, ClientLine] = {}
        self._order = itertools.count()
        self._newest_s = 0.0
        """The latest arrival of all requests so far."""
        self.num_tokens = 0
        """Tokens that all who wait have come with."""
        self.num_sequences = 0

    def __len__(self) -> int:
        return len(self._line_of)

    def __contains__(self, group: SequenceGroup) -> bool:
        return group in self._line_of

    def __iter__(self) -> Iterator[SequenceGroup]:
        return iter(list(self._line_of))

    @property
    def num_expected_tokens(self) -> float:
        """Tokens that all who wait are expected to yield."""
        return sum(line.num_expected_tokens for line in self._lines.values())

    def tokens_ahead(self, request: Request) -> float:
        """Tokens that will be given to others before a request that comes now, at most those that it finds waiting."""
        key, name = queue_key(request), self._line_name(request.client)
        own = self._lines.get(name)
        num_own = own.tokens_ahead(key) if own is not None else 0.0
        due = self.shares.counter(name) + num_own / request.weight
        num_ahead = num_own
        for line in self._lines.values():
            if line is not own:
                # Others are served until they have been given as much.
                num_due = (due - self.shares.counter(line.name)) * line.weight
                num_ahead += min(line.tokens_ahead(key), max(num_due, 0.0))
        return num_ahead

    def push(self, group: SequenceGroup) -> None:
        """Adds a request, or puts it back."""
        request, name = group.request, self._line_name(group.request.client)
        is_new, group.queue_key = group.queue_key == -math.inf, queue_key(request)
        line = self._lines.get(name)
        if line is None:
            if is_new:
                self.shares.enter(name, self._lines)
                self.shares.trim(self._lines)
            line = self._lines[name] = ClientLine(name)
        line.push(group, next(self._order))
        self._line_of[group] = line
        self._newest_s = max(self._newest_s, request.arrival_s)
        self.num_tokens += request.num_known_tokens
        self.num_sequences += request.num_sequences

    def remove(self, group: SequenceGroup) -> None:
        """Removes a request."""
        line = self._line_of.pop(group)
        line.remove(group)
        if not len(line):
            del self._lines[line.name]
        self.num_tokens -= group.request.num_known_tokens
        self.num_sequences -= group.request.num_sequences

    def pop(self, *, only_few_logprobs: bool = False) -> SequenceGroup | None:
        """Removes and returns the next request; None if the queue is empty.

        Args:
            only_few_logprobs: passes over requests that ask for many log-probabilities, however many there are.
        """
        firsts = [
            group
            for line in self._lines.values()
            if (group := line.first(only_few_logprobs=only_few_logprobs)) is not None
        ]
        if not firsts:
            return None
        group = firsts[0] if len(firsts) == 1 else self._next_of(firsts)
        self.remove(group)
        return group

    def on_admitted(self, group: SequenceGroup) -> None:
        """A request that was popped is admitted: its client is charged for it, once."""
        if group.num_charged_tokens is None:
            request = group.request
            group.num_charged_tokens = len(request.prompt_token_ids) + group.expected_tokens
            self.shares.charge(self._line_name(request.client), group.num_charged_tokens, request.weight)

    def on_ended(self, group: SequenceGroup) -> None:
        """A request has ended, and it is known what it took."""
        if group.num_charged_tokens is not None:
            request, num_each = group.request, 1 if group.beams is None else group.request.num_sequences
            num_tokens = len(request.prompt_token_ids) + num_each * group.num_output_tokens
            self.shares.settle(
                self._line_name(request.client), num_tokens - group.num_charged_tokens, group.request.weight
            )

    def _next_of(self, firsts: list[SequenceGroup]) -> SequenceGroup:
        """The next one of the first requests of several clients."""
        most_urgent = min(group.request.priority for group in firsts)

        def rank(group: SequenceGroup) -> tuple[int, float, float]:
            request = group.request
            # Whoever waits for long becomes as urgent as the others, not more: else long lines would go first.
            level = request.priority - int((self._newest_s - request.arrival_s) // LEVEL_S)
            has_turn = group.num_charged_tokens is not None or group.num_passes
            given = -math.inf if has_turn else self.shares.counter(self._line_of[group].name)
            return max(level, most_urgent), given, group.queue_key

        return min(firsts, key=rank)

    def _line_name(self, client: str) -> str:
        return client if client in self._lines or len(self._lines) < MAX_CLIENTS else OTHERS
