"""Limits of single clients: requests at a time, requests and tokens per minute, and their share of the device.

A file in TOML says what clients may: the table `default` what each of them may, and a table `clients.NAME` what the
client with this name may, where it differs. A client is who has one API key, one name, or one subject of a token;
without either, one host. Each router counts for itself.
"""

import math
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from pagewire_router.admission.reloaded_file import ReloadedFile
from pagewire_router.caller import Caller
from pagewire_router.errors import RateLimited
from pagewire_router.metrics.client_metrics import ClientMetrics

MAX_CLIENTS = 4096
"""Clients that are remembered while they ask for nothing."""
RETRY_S = 1.0
"""When to come back while too many requests run: nobody knows when the first of them ends."""


@dataclass(frozen=True, slots=True)
class ClientLimit:
    """What one client may do. Each is more than 0; inf: without a limit."""

    concurrent_requests: float = math.inf
    """Requests that wait or run at a time."""
    requests_per_minute: float = math.inf
    tokens_per_minute: float = math.inf
    """Tokens of prompts and of answers."""
    weight: float = 1.0
    """Its share of the device while others wait, relative to theirs."""


class LimitTable:
    """What the file says."""

    def __init__(self, default: ClientLimit, clients: Mapping[str, ClientLimit]) -> None:
        self.default = default
        self.clients = clients

    def of(self, name: str) -> ClientLimit:
        """The limits of the client with this name."""
        return self.clients.get(name, self.default)

    @staticmethod
    def parse(content: bytes) -> "LimitTable":
        """Raises ValueError."""
        data = tomllib.loads(content.decode())
        unknown = data.keys() - {"default", "clients"}
        if unknown:
            raise ValueError(f"{sorted(unknown)[0]!r} is unknown; tables are 'default' and 'clients.NAME'")
        default = _limit(ClientLimit(), data.get("default", {}), "default")
        tables = data.get("clients", {})
        if not isinstance(tables, dict):
            raise ValueError("clients is no table")
        return LimitTable(default, {name: _limit(default, table, f"clients.{name}") for name, table in tables.items()})


def _limit(base: ClientLimit, table: Any, where: str) -> ClientLimit:
    known = [field.name for field in fields(ClientLimit)]
    if not isinstance(table, dict):
        raise ValueError(f"{where} is no table")
    for name, value in table.items():
        if name not in known:
            raise ValueError(f"{where}.{name} is unknown; known are {', '.join(known)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"{where}.{name} is no number above 0; inf is no limit")
    limit = replace(base, **table)
    if not limit.weight < math.inf:
        raise ValueError(f"{where}.weight is not finite")
    return limit


class Bucket:
    """What may be used per minute. It holds a minute's worth, and may be overdrawn: what is used is known later."""

    __slots__ = ("_at_s", "_balance")

    def __init__(self) -> None:
        self._balance = math.inf
        self._at_s = 0.0

    def wait_s(self, limit: float, now_s: float) -> float:
        """Time until something may be used; 0 or less: now."""
        if limit == math.inf:
            self._balance = math.inf
            return 0.0
        self._balance = min(self._balance + (now_s - self._at_s) * limit / 60.0, limit)
        self._at_s = now_s
        return (min(1.0, limit) - self._balance) * 60.0 / limit

    def use(self, amount: float) -> None:
        """Takes what was used."""
        self._balance -= amount


class _Client:
    """What one client uses."""

    __slots__ = ("num_open", "requests", "tokens")

    def __init__(self) -> None:
        self.num_open = 0
        self.requests = Bucket()
        self.tokens = Bucket()


class Usage:
    """What one request uses of its client's limits."""

    def __init__(self, client: _Client, label: str, weight: float, metrics: ClientMetrics) -> None:
        self.weight = weight
        self._client = client
        self._label = label
        self._metrics = metrics

    def on_prompt(self, num_tokens: int) -> None:
        """The request has a prompt of so many tokens."""
        self._use(num_tokens, "prompt")

    def on_generated(self, num_tokens: int) -> None:
        """So many tokens were generated for it."""
        self._use(num_tokens, "generation")

    def _use(self, num_tokens: int, kind: str) -> None:
        self._client.tokens.use(num_tokens)
        self._metrics.num_tokens[self._label, kind] += num_tokens


class ClientLimits:
    """Counts what clients use. Everything runs on the event loop's thread."""

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.metrics = ClientMetrics()
        self._file = ReloadedFile(path, "Client limits", LimitTable.parse)
        self._clients: dict[str, _Client] = {}
        """By owner, the one that has asked last at the end."""
        self._clock = clock

    def read(self) -> None:
        """Reads the file. Raises FileError."""
        self._file.read()
        self.metrics.names = tuple(self._file.value.clients)

    @contextmanager
    def request(self, caller: Caller) -> Iterator[Usage]:
        """One request of a client, from its arrival to its end. Raises RateLimited."""
        table = self._file.value
        self.metrics.names = tuple(table.clients)
        limit, label = table.of(caller.name), self.metrics.label(caller.name)
        client = self._client(caller.owner)
        self._check(client, limit, label)
        client.requests.use(1)
        client.num_open += 1
        self.metrics.num_requests[label, "accepted"] += 1
        self.metrics.num_open[label] += 1
        try:
            yield Usage(client, label, limit.weight, self.metrics)
        finally:
            client.num_open -= 1
            self.metrics.num_open[label] -= 1

    def _check(self, client: _Client, limit: ClientLimit, label: str) -> None:
        now_s = self._clock()
        place_s = RETRY_S if client.num_open >= limit.concurrent_requests else 0.0
        requests_s = client.requests.wait_s(limit.requests_per_minute, now_s)
        tokens_s = client.tokens.wait_s(limit.tokens_per_minute, now_s)
        for wait_s, outcome, most, what in (
            (place_s, "too_many_at_a_time", limit.concurrent_requests, "requests at a time"),
            (requests_s, "too_many_requests", limit.requests_per_minute, "requests per minute"),
            (tokens_s, "too_many_tokens", limit.tokens_per_minute, "tokens per minute"),
        ):
            if wait_s > 0:
                self.metrics.num_requests[label, outcome] += 1
                raise RateLimited(f"this client may use {most:g} {what}", retry_after_s=wait_s)

    def _client(self, owner: str) -> _Client:
        client = self._clients.pop(owner, None) or _Client()
        self._clients[owner] = client
        if len(self._clients) > MAX_CLIENTS:
            idle = next((name for name, each in self._clients.items() if each.num_open == 0), owner)
            if idle != owner:
                del self._clients[idle]
        return client
