"""The example clients in every language: built with packages of Debian and npm, run against a router and a shard."""

from collections.abc import Iterator

import pytest
from cluster import Cluster
from example_client import COMPILERS, ExampleClient, ExampleClientContract, build_client, cluster_for_clients

pytestmark = pytest.mark.operate


@pytest.fixture(scope="module", params=COMPILERS)
def client(request: pytest.FixtureRequest) -> ExampleClient:
    return build_client(request.param)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with cluster_for_clients() as cluster:
        yield cluster


class TestExampleClient(ExampleClientContract):
    pass
