"""The latencies in /metrics are those that a client measures: of the same requests, at eight streams."""

import asyncio
from pathlib import Path

import pytest
import uvloop
from cluster import free_port, read_metrics, shards_and_router
from pagewire import SamplingParams
from pagewire.bench.grpc_sender import GrpcTarget, serialize
from pagewire.bench.metrics import compute_metrics
from pagewire.bench.runner import Load, offer
from pagewire.bench.workloads import Prompt

pytestmark = pytest.mark.operate

NUM_STREAMS = 8
NUM_REQUESTS = 96
PROMPT_LEN, OUTPUT_LEN = 384, 32
TOLERANCE = 0.05


def requests(num: int, first_token: int) -> list[bytes]:
    """No two have a prefix in common, so that each is computed."""
    sampling = SamplingParams(temperature=0, ignore_eos=True, detokenize=False)
    prompts = [Prompt([first_token + i] + [7] * (PROMPT_LEN - 1), OUTPUT_LEN) for i in range(num)]
    return [serialize(prompt, sampling) for prompt in prompts]


async def measure(address: str, metrics_port: int) -> tuple[dict[str, float], dict[str, float]]:
    """What the client measured, and by how much the metrics rose meanwhile. The connections are there before."""
    sender = GrpcTarget(address).connect()

    def load(payloads: list[bytes]) -> Load:
        return Load(payloads, [0.0] * len(payloads), max_concurrency=NUM_STREAMS)

    try:
        await offer(load(requests(NUM_STREAMS, 300)), sender, lambda _: None)
        before = await asyncio.to_thread(read_metrics, metrics_port)
        outcomes, duration_s = await offer(load(requests(NUM_REQUESTS, 20)), sender, lambda _: None)
        after = await asyncio.to_thread(read_metrics, metrics_port)
    finally:
        await sender.close()
    assert not [outcome.error for outcome in outcomes if outcome.error]
    figures = {name: value for name, value in compute_metrics(outcomes, duration_s).items() if value is not None}
    # Tokens that share the first message have no gap before them.
    figures["num_token_itls"] = sum(sum(outcome.message_tokens[1:]) for outcome in outcomes)
    return figures, {name: value - before[name] for name, value in after.items()}


@pytest.fixture(scope="module")
def measured() -> tuple[dict[str, float], dict[str, float]]:
    port = free_port()
    with shards_and_router(Path("demo"), router_flags=("--metrics-port", str(port))) as cluster:
        return uvloop.run(measure(cluster.address, port))


@pytest.mark.parametrize(
    ("metric", "figure", "count"),
    [
        ("pagewire_time_to_first_token_seconds", "mean_ttft_ms", "completed"),
        ("pagewire_inter_token_latency_seconds", "mean_token_itl_ms", "num_token_itls"),
        ("pagewire_request_latency_seconds", "mean_e2el_ms", "completed"),
    ],
)
def test_means_agree_with_the_clients(metric, figure, count, measured, record_property):
    client, rise = measured
    assert rise[f"{metric}_count"] == client[count]
    server_ms = rise[f"{metric}_sum"] / client[count] * 1000
    record_property(f"{metric}, mean, ms", server_ms)
    record_property(f"{figure}, of the client", client[figure])
    assert server_ms == pytest.approx(client[figure], rel=TOLERANCE)
