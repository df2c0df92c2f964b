"""The interface between Inference, which serves the fronts, and the dispatcher, which drives shard groups."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from pagewire.v1 import shard_pb2
from pagewire_common.health_state import HealthState
from pagewire_common.histogram import Histogram
from prometheus_client.registry import Collector

from pagewire_router.request import Request


class RequestRunner(Protocol):
    """Runs requests on shard groups. Its methods and the sinks are called on the event loop's thread."""

    @property
    def collector(self) -> Collector:
        """Metrics other than histograms."""

    @property
    def histograms(self) -> Sequence[Histogram]:
        """Histograms among the metrics."""

    @property
    def model(self) -> shard_pb2.ShardInfo:
        """The served model and its limits. To be read after start()."""

    @property
    def files(self) -> Mapping[str, bytes]:
        """Tokenizer and configuration files of the model, by name. To be read after start()."""

    @property
    def state(self) -> HealthState:
        """What it does, for probes."""

    @property
    def num_waiting(self) -> int:
        """Number of submitted requests that are not in a step plan yet."""

    def submit(self, request: Request) -> None:
        """Queues a request, whose sink is called from then on.

        Raises QueueFull (with retry_after_s), Unavailable, or RequestTooLong if it could never fit the pool.
        """

    def abort(self, request: Request) -> None:
        """Ends a request whose client has gone; its sink is not called again. Does nothing if the request has ended."""

    async def start(self) -> None:
        """Starts to look for shards; returns when the model is known. Raises TlsError."""

    async def wait_ready(self) -> None:
        """Returns when a new request would run."""

    async def wait_failed(self) -> None:
        """Waits until only a restarted router could serve, and raises Unavailable then."""

    async def drain(self, grace_s: float) -> None:
        """Refuses new requests and returns when the running ones have finished, at the latest after grace_s."""

    async def stop(self) -> None:
        """Releases the shards. Requests that still run fail with Unavailable."""
