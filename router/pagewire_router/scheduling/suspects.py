"""Requests that were in a step which failed, and are run again alone to find the one that makes steps fail.

A request becomes a suspect when a step fails that had it, or when a shard process has died twice in a row over it
without a token in between. A suspect is admitted again with no other request in its plans; the others go on in plans
between. It is cleared when it has got past all that the failed plans would have brought it, and ends with an error when
a step fails that had it alone, or when two shard processes have died over it alone.

One that fails in company again before it has yielded a token there stays alone to its end: so every failed step either
ends a request, or clears of suspicion, or was preceded by a token.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from pagewire.v1 import shard_pb2

from pagewire_router.errors import StepFailed
from pagewire_router.scheduling.sequence import Sequence, SequenceGroup


class Queue(Protocol):
    """The queue that requests are admitted from."""

    def pop(self, *, only_few_logprobs: bool = False) -> SequenceGroup | None:
        """Removes and returns the first request, or the first that does not ask for many log-probabilities."""

    def push(self, group: SequenceGroup) -> None:
        """Puts a request back that does not fit."""


MAX_DEATHS = 2
"""Shard processes that may die over a request, without a token in between, before it is a suspect."""
MAX_SHARD_LOSSES = 6
"""Shards that may be lost over a request at one router after the other, without a token in between. More than deaths:
connections that break count too, as long as it is not known whether the process has died."""
MAX_LONE_DEATHS = 2
"""Shard processes that may die over a suspect while it runs alone."""


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Why a request runs alone, and until when."""

    goals: list[tuple[Sequence, int]]
    """Its sequences, and the lengths they reach when it is cleared."""
    stays: bool
    """Whether it is never cleared."""

    def is_disproved(self) -> bool:
        """Whether the sequences have all the tokens that the failed plans would have brought."""
        return not self.stays and all(s.is_finished or len(s.token_ids) >= goal for s, goal in self.goals)


@dataclass(slots=True)
class Deaths:
    """Shard processes that died over a request since it last yielded a token."""

    num_tokens: int = 0
    """Output tokens of the request at the first of these deaths."""
    total: int = 0
    alone: int = 0


class Suspects:
    """The suspects of one shard group: one on trial, the others in a queue that the scheduler admits from."""

    def __init__(self) -> None:
        self.trial: SequenceGroup | None = None
        """The suspect that runs alone."""
        self._waiting: dict[SequenceGroup, None] = {}
        self._is_trial_next = True

    def __bool__(self) -> bool:
        return self.trial is not None or bool(self._waiting)

    def __len__(self) -> int:
        """Returns the number of suspects that wait."""
        return len(self._waiting)

    def __iter__(self) -> Iterator[SequenceGroup]:
        return iter(list(self._waiting))

    def push(self, group: SequenceGroup) -> None:
        """Puts a suspect at the end of the queue."""
        self.discard(group)
        self._waiting[group] = None

    def pop(self, *, only_few_logprobs: bool = False) -> SequenceGroup | None:
        """Puts the first suspect on trial and returns it; None while another one is on trial."""
        if self.trial is not None or not self._waiting:
            return None
        self.trial = next(iter(self._waiting))
        del self._waiting[self.trial]
        return self.trial

    def discard(self, group: SequenceGroup) -> None:
        """Forgets a request, whether or not it is a suspect here."""
        self._waiting.pop(group, None)
        if self.trial is group:
            self.trial = None

    def take_all(self) -> list[SequenceGroup]:
        """Removes and returns the suspects that wait."""
        groups = list(self._waiting)
        self._waiting.clear()
        return groups

    def plan(
        self,
        running: list[SequenceGroup],
        waiting: Queue,
        make_plan: Callable[[list[SequenceGroup], Queue | None], shard_pb2.StepPlan | None],
    ) -> shard_pb2.StepPlan | None:
        """A plan for the suspect on trial alone, or one for the others, in turn. Nothing may be in flight.

        While no suspect that waits fits, nobody else is admitted.
        """
        for is_trial in (self._is_trial_next, not self._is_trial_next):
            trial = self.trial
            if not is_trial:
                others = [group for group in running if group.suspicion is None]
                plan = make_plan(others, None if trial is None else waiting)
            elif trial is not None:
                plan = make_plan([trial], None)
            else:
                plan = make_plan([], self)
            if plan is not None:
                self._is_trial_next = not is_trial
                return plan
        return None

    def acquit(self) -> None:
        """Clears the suspect on trial if it has got past what failed."""
        trial = self.trial
        if trial is not None and trial.suspicion is not None and trial.suspicion.is_disproved():
            trial.suspicion, self.trial = None, None
            trial.cleared_at = trial.num_output_tokens


def blame(groups: list[SequenceGroup]) -> SequenceGroup | None:
    """A step has failed that had these requests: makes suspects of those that have not ended.

    Returns the request that was retried alone in it, and has to end.
    """
    alive = [group for group in groups if not group.is_finished]
    if len(groups) == len(alive) == 1 and alive[0].suspicion is not None:
        return alive[0]
    for group in alive:
        suspect(group)
    return None


def suspect(group: SequenceGroup) -> None:
    """Makes a request a suspect until it has the tokens that its plans so far would have brought."""
    goals = [(s, min(max(s.num_tokens, len(s.token_ids) + 1), s.max_len)) for s in group.unfinished()]
    group.suspicion = Suspicion(goals, stays=group.cleared_at == group.num_output_tokens)


def note_losses(group: SequenceGroup) -> None:
    """Makes a suspect of a request over which other routers have lost shards. Raises StepFailed if too many were."""
    if group.request.num_shard_losses >= MAX_SHARD_LOSSES:
        raise StepFailed(f"{group.request.num_shard_losses} shards were lost while they ran this request")
    if group.request.num_shard_losses >= MAX_DEATHS:
        suspect(group)


def count_losses(group: SequenceGroup) -> int:
    """How many shards were lost in a row over a request that has just lost one, those of other routers included.

    A beam search, of which the client gets nothing before its end, begins anew at each router.
    """
    request = group.request
    if group.beams is None and group.num_output_tokens > request.num_received_tokens:
        return 1
    return 1 + request.num_shard_losses


def note_death(group: SequenceGroup, *, alone: bool) -> bool:
    """Counts a shard process that died over the request. Returns whether too many died over it alone."""
    if group.deaths is None or group.deaths.num_tokens != group.num_output_tokens:
        group.deaths = Deaths(group.num_output_tokens)
    group.deaths.total += 1
    group.deaths.alone += alone
    if group.suspicion is None and group.deaths.total >= MAX_DEATHS:
        suspect(group)
    return group.deaths.alone >= MAX_LONE_DEATHS
