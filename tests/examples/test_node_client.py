"""The example client in JavaScript: built by npm, run by Node against a router and a shard."""

from collections.abc import Iterator

import pytest
from cluster import Cluster
from example_client import (
    ExampleClient,
    ExampleClientContract,
    ResumingClientContract,
    build_client,
    cluster_for_clients,
)


@pytest.fixture(scope="module")
def client() -> ExampleClient:
    return build_client("node")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with cluster_for_clients() as cluster:
        yield cluster


class TestNodeClient(ExampleClientContract, ResumingClientContract):
    pass
