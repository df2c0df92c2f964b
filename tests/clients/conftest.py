"""The bundled model behind `pagewire serve`, for clients that know nothing of pagewire."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import free_port, shards_and_router
from http_clients import KEY, MODEL, Server, compact_bias, demo_server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """As a newcomer starts it."""
    with demo_server() as server:
        yield server


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One request runs and one waits; it wants a key and small bodies, and reads calls in the format of Hermes."""
    keys = tmp_path_factory.mktemp("guarded") / "keys"
    keys.write_text(f"{KEY}\n")
    port = free_port()
    flags = (
        *("--http-port", "0", "--metrics-port", str(port), "--api-keys", str(keys), "--tool-call-parser", "hermes"),
        *("--max-queued-requests", "1", "--http-max-body-bytes", "100000"),
    )
    with shards_and_router(Path(MODEL), "--max-num-seqs", "1", router_flags=flags) as cluster:
        yield Server(f"http://{cluster.router.http_address()}", port)


@pytest.fixture(scope="session")
def compact() -> dict[str, int]:
    """A logit_bias without whitespace."""
    return compact_bias()
