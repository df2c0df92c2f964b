"""Open and closed loops of clients before one scheduler, in virtual time: a step takes what a formula says."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pagewire_router.errors import QueueFull
from pagewire_router.groups.placement import place_in_time
from pagewire_router.request import Request
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_router.scheduling.forecast import Estimate
from pagewire_router.scheduling.prefix_index import PrefixIndex
from pagewire_router.scheduling.sequence import SequenceGroup
from scheduling_world import FINISHED_BY_ITSELF, World, make_request

Cost = Callable[[int, int], float]
"""Seconds of a step by its rows and by the prompt tokens it computes besides."""


@dataclass
class Counts:
    """Counts of requests by result."""

    in_time: list[float] = field(default_factory=list)
    """Times at which requests finished before their deadlines."""
    refused: int = 0
    retry_after_s: list[float] = field(default_factory=list)
    given_up: int = 0
    expired: int = 0
    tokens_in_vain: int = 0
    """Sampled for requests whose deadline passed."""
    tokens: int = 0

    def goodput(self, since_s: float, until_s: float) -> float:
        """Requests that finished in time, for each second."""
        return sum(since_s <= at_s < until_s for at_s in self.in_time) / (until_s - since_s)


class TimedGroup(World):
    """One shard group with two plans in flight, whose steps take their time one after another."""

    def __init__(self, limits: GroupLimits, cost: Cost, *, eos_share: float = 0.0) -> None:
        super().__init__(limits, window=2, eos_share=eos_share)
        self.cost, self.counts = cost, Counts()
        self.sent_s: list[float] = []
        self.last_s = 0.0
        self.ended: list[SequenceGroup] = []

    @property
    def load(self) -> int:
        return self.scheduler.num_running_sequences + len(self.scheduler.waiting)

    @property
    def prefixes(self) -> PrefixIndex:
        return self.scheduler.prefixes

    @property
    def block_size(self) -> int:
        return self.scheduler.limits.block_size

    @property
    def longest_short(self) -> int:
        return self.scheduler.limits.longest_short

    def estimate(self, request: Request, now: float) -> Estimate | None:
        return self.scheduler.forecast.estimate(request, now)

    def step_until(self, end_s: float) -> None:
        """Runs steps whose results come until then."""
        while self.now < end_s:
            self._note_given_up(self.scheduler.take_expired(self.now))
            while self.scheduler.num_inflight < self.window:
                plan = self.scheduler.schedule(self.now)
                self._note_given_up([])
                if plan is None:
                    break
                self.sent_s.append(self.now)
                self.ranks[0].take(plan)
            if not self.scheduler.num_inflight:
                self.now = end_s
                return
            self._take_result()

    def _take_result(self) -> None:
        progress = self.scheduler.update(self.ranks[0].result())
        step = self.scheduler.last_completed
        self.now = max(self.now, self.last_s) + self.cost(len(step.sequences), step.num_prompt_tokens)
        took_s = self.now - max(self.sent_s.pop(0), self.last_s)
        self.last_s = self.now
        self.scheduler.forecast.on_step(self.now, took_s, step)
        self.counts.tokens += len(progress)
        for group in {p.sequence.group for p in progress if p.finish_reason in FINISHED_BY_ITSELF}:
            if group.is_finished:
                self.ended.append(group)
                if group.request.deadline_s is None or self.now <= group.request.deadline_s:
                    self.counts.in_time.append(self.now)
                else:
                    self.counts.tokens_in_vain += group.num_output_tokens

    def _note_given_up(self, expired: list[SequenceGroup]) -> None:
        self.counts.expired += len(expired)
        self.counts.tokens_in_vain += sum(group.num_output_tokens for group in expired)
        self.counts.given_up += len(self.scheduler.given_up)
        self.ended += [*expired, *self.scheduler.given_up]
        self.scheduler.given_up.clear()


def run_open(groups: list[TimedGroup], requests: Iterator[Request], until_s: float) -> None:
    """Requests come at their arrival_s, whatever became of those before."""
    for request in requests:
        if request.arrival_s >= until_s:
            break
        for group in groups:
            group.step_until(request.arrival_s)
        try:
            place_in_time(request, groups, request.arrival_s).submit(request)
        except QueueFull as error:
            groups[0].counts.refused += 1
            groups[0].counts.retry_after_s.append(error.retry_after_s or 0.0)
    for group in groups:
        group.step_until(until_s)


def run_closed(group: TimedGroup, new_request: Callable[[float], Request], num_clients: int, until_s: float) -> None:
    """Each client asks again when it is answered."""
    for _ in range(num_clients):
        group.submit(new_request(group.now))
    while group.now < until_s:
        group.step_until(min(group.now + 1e-9, until_s))
        for _ in group.ended:
            group.submit(new_request(group.now))
        group.ended.clear()


def arrivals(rate: float, new_request: Callable[[float], Request], start_s: float = 0.0) -> Iterator[Request]:
    """One every 1 / rate seconds."""
    return (new_request(start_s + i / rate) for i in itertools.count())


_numbers = itertools.count()


def timed_request(arrival_s: float, *, deadline_in_s: float | None, num_prompt: int = 4, **options: object) -> Request:
    """A request with a prompt of its own."""
    number = next(_numbers)
    prompt = [1 + (number // 5**i) % 5 for i in range(num_prompt)]
    deadline_s = None if deadline_in_s is None else arrival_s + deadline_in_s
    return make_request(prompt, arrival_s=arrival_s, deadline_s=deadline_s, seed=number, **options)
