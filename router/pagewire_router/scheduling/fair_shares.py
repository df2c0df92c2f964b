"""Virtual token counters: what each client was given of the device, so that the next turn is that of who has had least.

After Sheng et al., Fairness in Serving Large Language Models (arXiv:2401.00588). A client's counter grows by the tokens
of its requests, divided by its weight. One that begins to wait is lifted to the lowest counter among those that wait:
what it has not asked for while it was away is not owed to it. Of two clients that wait all the time, none is thus given
more than a request's tokens beyond its share, whatever the other one asks for.

A request is charged when it is admitted, with the tokens it is expected to yield; what that was wrong by is settled
when it ends.
"""

from collections.abc import Iterable

MAX_REMEMBERED = 1024
"""Clients whose counters are kept while they do not wait."""


class FairShares:
    """The counters of one waiting queue's clients, in tokens of weight 1."""

    def __init__(self) -> None:
        self._counters: dict[str, float] = {}
        """The client whose counter changed last is at the end."""
        self._level = 0.0
        """The counter of the client that was served last, when it was."""

    def counter(self, client: str) -> float:
        """What the client was given; one that is not remembered begins where the last one was served."""
        return self._counters.get(client, self._level)

    def enter(self, client: str, waiting: Iterable[str]) -> None:
        """A client begins to wait beside those that wait already."""
        floor = min(map(self.counter, waiting), default=self._level)
        self._set(client, max(self._counters.get(client, floor), floor))

    def charge(self, client: str, num_tokens: float, weight: float) -> None:
        """A client is given the device for so many tokens."""
        self._level = self.counter(client)
        self._set(client, self._level + num_tokens / weight)

    def settle(self, client: str, num_tokens: float, weight: float) -> None:
        """A client has used so many tokens more than it was charged for, or less."""
        if client in self._counters:
            self._counters[client] += num_tokens / weight

    def trim(self, waiting: Iterable[str]) -> None:
        """Forgets those of whom nothing was heard for longest, unless they wait."""
        num_surplus = len(self._counters) - MAX_REMEMBERED
        if num_surplus > 0:
            kept = set(waiting)
            for client in [each for each in self._counters if each not in kept][:num_surplus]:
                del self._counters[client]

    def _set(self, client: str, counter: float) -> None:
        self._counters.pop(client, None)
        self._counters[client] = counter
