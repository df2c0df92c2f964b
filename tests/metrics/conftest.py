"""Router and shard as processes, after some traffic of every kind, and what their /metrics say then."""

import http.client
import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster import free_port, shards_and_router
from pagewire import Client, InvalidRequest, SamplingParams
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from promql import Series


@dataclass(frozen=True)
class Pages:
    """Metric families of both processes."""

    router: list[Metric]
    shard: list[Metric]

    @property
    def all(self) -> list[Metric]:
        return self.router + self.shard

    @property
    def series(self) -> list[Series]:
        return [(sample.name, sample.labels) for family in self.all for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """Of the one sample with that name and these labels among its own."""
        (value,) = (
            sample.value
            for family in self.all
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )
        return float(value)


def read(port: int) -> list[Metric]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        return list(text_string_to_metric_families(response.read().decode()))


def ask_over_http(address: str) -> None:
    """One request that streams its answer, and one for a model that is not served."""
    for model, status in (("demo", 200), ("another", 404)):
        body = {"model": model, "prompt": [5] * 4, "max_tokens": 8, "stream": True}
        connection = http.client.HTTPConnection(address, timeout=180)
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
        connection.close()


@pytest.fixture(scope="session")
def pages() -> Pages:
    port = free_port()
    with (
        shards_and_router(Path("demo"), router_flags=("--metrics-port", str(port), "--http-port", "0")) as cluster,
        Client(cluster.address, timeout_s=60) as client,
    ):
        params = SamplingParams(max_tokens=8, ignore_eos=True, temperature=0)
        for _ in range(2):
            client.complete({"prompt_token_ids": [5] * 40}, params)
        client.complete_many(["Hello", "The capital"], SamplingParams(max_tokens=8, n=2))
        for _ in client.generate("The future of AI is", params):
            pass
        ask_over_http(cluster.router.http_address())
        with pytest.raises(InvalidRequest):
            client.complete({"prompt_token_ids": [10**6]})
        # Until the last plan, which releases, has been counted on both sides.
        cluster.check_all_blocks_come_back()
        return Pages(read(port), read(cluster.metrics_ports[0]))
