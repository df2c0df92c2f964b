"""What a benchmark sends, and what it records of the answers, whatever the server's API."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pagewire.bench.metrics import RequestOutcome
from pagewire.bench.workloads import Prompt


@dataclass(slots=True)
class Recording:
    """The parts of one answer, as they came: undecoded while the run lasts."""

    start_s: float = 0.0
    end_s: float = 0.0
    times_s: list[float] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    """One for each entry of times_s: messages, or parts of a body."""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Session:
    """Requests of which each continues the conversation of the one before it, and waits for its answer."""

    turns: Sequence[Prompt]
    """What each request adds to the conversation."""
    delay_s: float = 0.0
    """Time between an answer and the next request."""


class Sender(Protocol):
    """Sends the requests of one API."""

    def serialize(self, content: Any, max_tokens: int) -> bytes:
        """A request for a prompt: text, token ids, or what continued() has returned."""

    async def send(self, request: bytes, recording: Recording) -> None:
        """Sends a request and records its answer. A request that fails is a recording with an error."""

    def outcome(self, recording: Recording, origin_s: float) -> RequestOutcome:
        """Reads what was recorded; times become relative to origin_s."""

    def continued(self, content: Any, recording: Recording, added: str | list[int]) -> Any:
        """The conversation so far, the answer to it, and what the next turn adds."""

    async def close(self) -> None:
        """Closes all connections."""


class Target(Protocol):
    """A server, as the command line names it. Can be pickled."""

    def connect(self) -> Sender:
        """Returns a sender of its requests, which belongs to the event loop that runs."""
