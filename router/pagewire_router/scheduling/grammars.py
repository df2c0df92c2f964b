"""The grammars of one shard group: which may be named by plans, which are being prepared, and who waits for them.

A request with a grammar waits here, not in the waiting queue, until every rank has answered that the grammar is ready.
Requests of one grammar share one preparation. A grammar that nobody uses any more stays ready, until MAX_UNUSED others
have been used since, or a shard has no room for another one: then all of them are forgotten, and it is asked once more.
A grammar that nobody waits for any more is withdrawn. Nothing here outlives an epoch but the requests that wait.

Pure, as the rest of the scheduler: messages for the shards are collected until somebody takes them.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from pagewire.v1 import shard_pb2

from pagewire_router.scheduling.sequence import SequenceGroup

MAX_UNUSED = 64
"""Grammars that are kept although nobody uses them, those that were refused for good included."""
_OK = 0
_INVALID_ARGUMENT = 3
_RESOURCE_EXHAUSTED = 8


class Refusal(NamedTuple):
    """A request that cannot run because of its grammar."""

    group: SequenceGroup
    code: int
    """The gRPC status that a shard has answered with."""
    message: str


@dataclass(slots=True, eq=False)
class _Grammar:
    num_unanswered: int
    """Ranks that were asked and have not answered."""
    refusal: shard_pb2.Prepared | None = None
    """The first answer that is not OK."""
    users: dict[SequenceGroup, None] = field(default_factory=dict)
    """Requests that have not ended."""
    last_step: int = 0
    """The last plan that names it."""
    is_withdrawn: bool = False
    """It was forgotten before all ranks had answered, and is asked for again if somebody uses it by then."""
    was_retried: bool = False
    """It was asked for again after what nobody uses had been forgotten."""

    @property
    def is_ready(self) -> bool:
        return self.num_unanswered == 0 and self.refusal is None


class Grammars:
    """What the scheduler asks about grammars. Costs nothing for requests without one."""

    def __init__(self, num_ranks: int = 1) -> None:
        """num_ranks: shards of the group, all of which have to be ready."""
        self._num_ranks = num_ranks
        self._grammars: OrderedDict[str, _Grammar] = OrderedDict()
        """By name, the one that was used last at the end."""
        self._waiting: dict[SequenceGroup, None] = {}
        self._messages: list[shard_pb2.RouterMessage] = []
        self._retries: list[str] = []
        """Grammars to ask for again once there is room."""
        self.num_tokens = 0
        """Tokens that the requests that wait have come with."""
        self.max_unused = MAX_UNUSED
        self.refusals: list[Refusal] = []
        """Requests that were refused, until somebody ends them."""

    @property
    def num_waiting(self) -> int:
        """Requests that wait for their grammar."""
        return len(self._waiting)

    @property
    def has_messages(self) -> bool:
        """Whether the shards have to be told something."""
        return bool(self._messages or self._retries)

    def reset(self) -> None:
        """A new epoch: the shards have forgotten everything. What is still used is asked for when it is put back."""
        self._grammars.clear()
        self._messages.clear()
        self._retries.clear()

    def take_waiting(self) -> list[SequenceGroup]:
        """Removes and returns the requests that wait."""
        groups = list(self._waiting)
        self._waiting.clear()
        self.num_tokens = 0
        return groups

    def holds(self, group: SequenceGroup) -> bool:
        """Whether a request that wants to be admitted has to wait for its grammar, which is then asked for."""
        name = group.request.grammar
        if not name:
            return False
        grammar = self._grammars.get(name)
        if grammar is None:
            grammar = self._grammars[name] = _Grammar(self._num_ranks)
            self._ask(name, group)
        self._grammars.move_to_end(name)
        grammar.users[group] = None
        if grammar.is_ready:
            return False
        self._waiting[group] = None
        self.num_tokens += group.request.num_known_tokens
        if grammar.refusal is not None and not self._awaits_another_attempt(grammar):
            self._refuse(group, grammar.refusal)
        return True

    def discard(self, group: SequenceGroup) -> None:
        """A request has ended, or has left for another shard group."""
        grammar = self._grammars.get(group.request.grammar)
        if grammar is not None:
            grammar.users.pop(group, None)
            if not grammar.users and grammar.num_unanswered and not grammar.is_withdrawn:
                grammar.is_withdrawn = True
                self._tell_to_forget(group.request.grammar)
        self._leave(group)

    def on_admit(self, group: SequenceGroup, step: int) -> None:
        """A plan names the request's grammar."""
        if group.request.grammar:
            grammar = self._grammars[group.request.grammar]
            assert grammar.is_ready, "a plan names only what is ready"
            grammar.last_step = step

    def on_prepared(self, answer: shard_pb2.Prepared) -> list[SequenceGroup]:
        """Takes in the answer of one rank. Returns the requests that need not wait any longer, in order of arrival."""
        grammar = self._grammars.get(answer.name)
        if grammar is None or grammar.num_unanswered == 0:
            return []
        grammar.num_unanswered -= 1
        if answer.code != _OK and grammar.refusal is None:
            grammar.refusal = answer
        if self._awaits_another_attempt(grammar):
            if grammar.num_unanswered == 0:
                self._attempt_again(answer.name, grammar)
        elif grammar.refusal is not None:
            for group in grammar.users:
                self._refuse(group, grammar.refusal)
            if grammar.num_unanswered == 0 and grammar.refusal.code != _INVALID_ARGUMENT:
                self._forget(answer.name)  # It may be ready at the next attempt.
        elif grammar.num_unanswered == 0:
            ready = [group for group in grammar.users if group in self._waiting]
            for group in ready:
                self._leave(group)
            return ready
        return []

    def take_messages(self, oldest_step: int) -> list[shard_pb2.RouterMessage]:
        """Removes and returns the messages for the shards, in order.

        Args:
            oldest_step: The oldest plan in flight, or the next one. Grammars that it or a later plan names are kept.
        """
        if self._retries:
            self._retry(oldest_step)
        if len(self._grammars) > self.max_unused:
            self._forget_unused(oldest_step, self.max_unused)
        if not self._messages:
            return []
        messages, self._messages = self._messages, []
        return messages

    def _awaits_another_attempt(self, grammar: _Grammar) -> bool:
        """Whether an answer that is no success is not passed on: it is asked again when all ranks have answered."""
        if grammar.is_withdrawn:
            return True
        is_full = grammar.refusal is not None and grammar.refusal.code == _RESOURCE_EXHAUSTED
        return is_full and not grammar.was_retried and any(not other.users for other in self._grammars.values())

    def _attempt_again(self, name: str, grammar: _Grammar) -> None:
        """All ranks have answered. Those that are told to forget what nobody uses may have room then."""
        if not grammar.users:
            del self._grammars[name]
            if not grammar.is_withdrawn:
                self._tell_to_forget(name)
            return
        grammar.was_retried = not grammar.is_withdrawn
        grammar.is_withdrawn = False
        grammar.refusal = None
        grammar.num_unanswered = self._num_ranks
        if grammar.was_retried:
            if self._num_ranks > 1:  # Some may have it ready, and are asked only for what they have not.
                self._tell_to_forget(name)
            self._retries.append(name)
        else:
            self._ask(name, next(iter(grammar.users)))

    def _retry(self, oldest_step: int) -> None:
        names, self._retries = self._retries, []
        self._forget_unused(oldest_step, 0)
        for name in names:
            grammar = self._grammars.get(name)
            if grammar is None:
                continue
            if grammar.users:
                grammar.is_withdrawn = False
                self._ask(name, next(iter(grammar.users)))
            else:
                del self._grammars[name]

    def _forget_unused(self, oldest_step: int, num_kept: int) -> None:
        unused = [
            name
            for name, grammar in self._grammars.items()
            if not grammar.users and grammar.num_unanswered == 0 and grammar.last_step < oldest_step
        ]
        for name in unused[: max(0, len(unused) - num_kept)]:
            self._forget(name)

    def _ask(self, name: str, user: SequenceGroup) -> None:
        content = user.request.params.structured_outputs
        self._messages.append(shard_pb2.RouterMessage(prepare=shard_pb2.Prepare(name=name, grammar=content)))

    def _forget(self, name: str) -> None:
        del self._grammars[name]
        self._tell_to_forget(name)

    def _tell_to_forget(self, name: str) -> None:
        self._messages.append(shard_pb2.RouterMessage(forget=shard_pb2.Forget(names=[name])))

    def _refuse(self, group: SequenceGroup, answer: shard_pb2.Prepared) -> None:
        if group in self._waiting:
            self._leave(group)
            self.refusals.append(Refusal(group, answer.code, answer.message))

    def _leave(self, group: SequenceGroup) -> None:
        if group in self._waiting:
            del self._waiting[group]
            self.num_tokens -= group.request.num_known_tokens
