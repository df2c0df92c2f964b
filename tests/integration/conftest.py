"""A router and a shard as processes of their own, for all tests that only talk to them; a Llama in this process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from cluster import Cluster, shards_and_router
from pagewire import Client
from random_models import random_model, service_config, write_model
from reference_model import ReferenceModel
from subject import Subject, subject


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The models are too small for more, and the processes under test need a core."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), service_config())


@pytest.fixture(scope="session")
def reference() -> ReferenceModel:
    return ReferenceModel(random_model(service_config()))


@pytest.fixture(scope="session")
def tokenizer(model: Path) -> transformers.PreTrainedTokenizerFast:
    return transformers.PreTrainedTokenizerFast.from_pretrained(model)


@pytest.fixture(scope="session")
def cluster(model: Path) -> Iterator[Cluster]:
    with shards_and_router(
        model,
        *("--block-size", "16", "--kv-cache-memory", "64MiB"),
        router_flags=["--trust-request-chat-template", "--http-port", "0"],
    ) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def http_url(cluster: Cluster) -> str:
    """The URL of the cluster's HTTP front."""
    return f"http://{cluster.router.http_address()}"


@pytest.fixture(autouse=True)
def whole_pool(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test on the shared cluster all blocks are free again and nothing has been started anew."""
    yield
    if "cluster" in request.fixturenames:
        cluster: Cluster = request.getfixturevalue("cluster")
        cluster.check_all_blocks_come_back()
        assert all(service.process.poll() is None for service in (cluster.router, *cluster.shards)), cluster.log()
        assert "Traceback" not in cluster.log(), cluster.log()


@pytest.fixture(scope="session")
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster.address, timeout_s=60) as client:
        yield client
