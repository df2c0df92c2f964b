"""The example clients in every language: built with packages of Debian and npm, run against a router and a shard."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from certificates import Authority
from cluster import Cluster, shards_and_router
from example_client import (
    TEXT,
    TOOLCHAINS,
    ExampleClient,
    ExampleClientContract,
    ResumingClientContract,
    build_client,
    cluster_for_clients,
)

pytestmark = pytest.mark.operate
KEY = "a-key-that-the-router-knows"


@dataclass(frozen=True)
class SecuredCluster:
    """A router that wants a key and speaks TLS alone."""

    cluster: Cluster
    ca: str

    @property
    def address(self) -> str:
        """By name: to Node.js an IP address is none."""
        return self.cluster.address.replace("127.0.0.1", "localhost")


@pytest.fixture(scope="module", params=TOOLCHAINS)
def client(request: pytest.FixtureRequest) -> ExampleClient:
    return build_client(request.param)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with cluster_for_clients() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredCluster]:
    directory = tmp_path_factory.mktemp("secured")
    authority = Authority(directory)
    issued = authority.issue("router", "localhost")
    keys = directory / "keys"
    keys.write_text(f"{KEY}\n")
    flags = ("--tls-cert", issued.cert, "--tls-key", issued.key, "--api-keys", str(keys))
    with cluster_for_clients(*flags) as cluster:
        yield SecuredCluster(cluster, authority.ca)


@pytest.fixture(scope="module")
def unix_cluster() -> Iterator[Cluster]:
    with shards_and_router(Path("demo")) as cluster:
        yield cluster


class TestExampleClient(ExampleClientContract):
    """All of the contract, in every language."""


@pytest.mark.parametrize("client", ["go", "node"], indirect=True)
class TestResumingClient(ResumingClientContract):
    """What Go's and JavaScript's clients do beyond it."""


def says(errors: str, start: str) -> bool:
    """A line begins so. The libraries may log lines of their own, and descriptions may have several."""
    return any(line.startswith(start) for line in errors.splitlines())


def test_trusts_an_authority_and_sends_its_key(client: ExampleClient, secured: SecuredCluster) -> None:
    arguments = ("--address", secured.address, "--tls-ca", secured.ca)
    run = client.run(*arguments, "complete", TEXT, PAGEWIRE_API_KEY=KEY)
    assert run.returncode == 0, run.stderr + secured.cluster.log()
    assert run.stdout.strip()
    refused = client.run(*arguments, "complete", TEXT, PAGEWIRE_API_KEY="another")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert says(refused.stderr, "UNAUTHENTICATED: "), refused.stderr


def test_does_not_trust_an_authority_it_was_not_given(
    client: ExampleClient, secured: SecuredCluster, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path)
    run = client.run("--address", secured.address, "--tls-ca", stranger.ca, "complete", TEXT)
    assert (run.returncode, run.stdout) == (1, "")
    assert says(run.stderr, "UNAVAILABLE: "), run.stderr


@pytest.mark.parametrize("client", ["node", "go", "cpp", "ruby"], indirect=True)
def test_a_unix_socket_is_an_address_too(client: ExampleClient, unix_cluster: Cluster) -> None:
    run = client.run("--address", unix_cluster.address, "complete", TEXT)
    assert run.returncode == 0, run.stderr + unix_cluster.log()
    assert run.stdout.strip()
