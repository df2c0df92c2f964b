"""The seam between the service, which talks to clients, and the dispatcher, which drives shard groups."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from pagewire.v1 import shard_pb2
from pagewire_common.histogram import Histogram
from prometheus_client.registry import Collector

from pagewire_router.request import Request


class Engine(Protocol):
    """Runs requests on shard groups. Everything is called on the event loop's thread, and so are the sinks."""

    @property
    def collector(self) -> Collector:
        """The engine's own metrics but for histograms."""

    @property
    def histograms(self) -> Sequence[Histogram]:
        """The engine's own histograms."""

    @property
    def model(self) -> shard_pb2.ShardInfo:
        """The served model and its limits; known after start()."""

    @property
    def files(self) -> Mapping[str, bytes]:
        """The model's tokenizer and configuration files by name; known after start()."""

    @property
    def is_ready(self) -> bool:
        """A step would run."""

    @property
    def num_waiting(self) -> int:
        """Requests that were submitted and wait to be admitted."""

    def submit(self, request: Request) -> None:
        """Queues a request; its sink hears of it from then on.

        Raises QueueFull (with retry_after_s), Unavailable, or RequestTooLong if it could never fit the pool.
        """

    def abort(self, request: Request) -> None:
        """Ends a request whose client is gone. Its sink hears nothing more. Does nothing if it has ended."""

    async def start(self) -> None:
        """Begins to look for shards; returns when the model is known. Raises TlsError."""

    async def wait_ready(self) -> None:
        """Returns when a step would run."""

    async def wait_failed(self) -> None:
        """Raises Unavailable when only a new router can go on; until then it waits."""

    async def drain(self, grace_s: float) -> None:
        """Refuses new requests and returns when the running ones have finished, at the latest after grace_s."""

    async def stop(self) -> None:
        """Lets go of the shards. Requests that still run fail with Unavailable."""
