"""A request from Node through a router and a shard, as a trace backend shows it: connected, with a preemption in it."""

import json
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, eventually, shards_and_router
from example_client import TEXT, ExampleClient, build_client
from operate_tools import OPERATE, ROOT, set_up
from pagewire import Client, PagewireError, SamplingParams
from trace_backend import RESOURCE, TraceBackend, trace_backend

pytestmark = pytest.mark.operate

SMALL_POOL = ("--block-size", "16", "--max-model-len", "512", "--kv-cache-memory", str(40 * 16 * 2 * 6 * 4 * 32 * 4))
"""640 tokens of the demo model: two requests of 400 do not fit together."""
MAX_ATTEMPTS = 30
ARRIVAL_TIMEOUT_S = 60.0
CLIENT = "grpc.pagewire.v1.Inference/Generate"
"""As OpenTelemetry's instrumentation of grpc-js names it."""
CALL = "pagewire.v1.Inference/Generate"

Span = dict[str, Any]


@pytest.fixture(scope="module")
def backend() -> Iterator[TraceBackend]:
    set_up("phoenix")
    with trace_backend() as backend:
        yield backend


@pytest.fixture(scope="module")
def cluster(backend: TraceBackend) -> Iterator[Cluster]:
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", backend.otlp_endpoint)
            patch.setenv("OTEL_RESOURCE_ATTRIBUTES", RESOURCE)
            patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
            # Requests without a context, those that only make others wait, are not sampled.
            patch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
            flags = ["--listen", "127.0.0.1:0"]
            cluster = stack.enter_context(shards_and_router(Path("demo"), *SMALL_POOL, router_flags=flags))
        yield cluster


@pytest.fixture(scope="module")
def node() -> ExampleClient:
    client = build_client("node")
    set_up("clients_node_tracing")
    return ExampleClient("node", ("node", "--import", "./tracing/tracing.js", *client.command[1:]))


@contextmanager
def pressure(address: str) -> Iterator[None]:
    """More urgent requests, of which three at a time want more blocks than there are."""
    stop = threading.Event()

    def ask() -> None:
        params = SamplingParams(max_tokens=400, ignore_eos=True)
        with Client(address, timeout_s=120) as client:
            while not stop.is_set():
                prompt = {"prompt_token_ids": [1 + secrets.randbelow(4000) for _ in range(16)]}
                try:
                    for _ in client.generate(prompt, params, priority=-1):
                        if stop.is_set():
                            break
                except PagewireError:
                    stop.wait(0.1)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def preemptions(call: Span) -> list[Any]:
    return [event for event in call["events"] if event["name"] == "preemption"]


def children(spans: list[Span], parent: Span) -> list[Span]:
    return [span for span in spans if span["parent_id"] == parent["context"]["span_id"]]


def named(spans: list[Span], name: str) -> list[Span]:
    return [span for span in spans if span["name"] == name]


def ask(node: ExampleClient, cluster: Cluster, backend: TraceBackend) -> list[Span]:
    """One request of the Node client; the spans of its trace, once the last has come."""
    known = {span["context"]["trace_id"] for span in backend.spans()}
    run = node.run(
        *("--address", cluster.address, "complete", TEXT),
        OTEL_EXPORTER_OTLP_ENDPOINT=backend.otlp_endpoint,
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
        OTEL_RESOURCE_ATTRIBUTES=RESOURCE,
        OTEL_SERVICE_NAME="node-client",
        OTEL_LOGS_EXPORTER="none",
        OTEL_METRICS_EXPORTER="none",
    )
    assert run.returncode == 0, run.stderr + cluster.log()
    spans: list[Span] = []

    def is_whole() -> bool:
        """Client, router and shard export on their own, so that spans come in any order."""
        roots = [span for span in named(backend.spans(), CLIENT) if span["context"]["trace_id"] not in known]
        if not roots:
            return False
        spans[:] = backend.trace(roots[0]["context"]["trace_id"])
        sequences, calls = named(spans, "sequence"), named(spans, CALL)
        return (
            bool(calls)
            and len(sequences) == 1 + len(preemptions(calls[0]))
            and all(children(spans, sequence) for sequence in sequences)
        )

    eventually(is_whole, f"the whole trace is in the backend\n{cluster.log()}", ARRIVAL_TIMEOUT_S)
    return spans


def check_is_one_tree(spans: list[Span]) -> Span:
    """Every span hangs on the client's. Returns the router's span of the call."""
    ids = {span["context"]["span_id"] for span in spans}
    (root,) = [span for span in spans if span["parent_id"] is None]
    assert root["name"] == CLIENT
    assert all(span["parent_id"] in ids for span in spans if span is not root)
    (call,) = children(spans, root)
    assert call["name"] == CALL
    sequences = named(children(spans, call), "sequence")
    on_shard = [span for sequence in sequences for span in children(spans, sequence)]
    assert {span["name"] for span in on_shard} == {"prefill"}
    assert len(spans) == 2 + len(children(spans, call)) + len(on_shard)
    return call


def test_a_request_from_node_is_one_connected_trace(
    node: ExampleClient, cluster: Cluster, backend: TraceBackend, record_property: Callable[[str, float], None]
) -> None:
    spans = ask(node, cluster, backend)
    record_property("spans in the trace", len(spans))
    call = check_is_one_tree(spans)
    names = [span["name"] for span in children(spans, call)]
    assert sorted(names) == ["decode", "prefill", "queue", "sequence", "tokenize"]
    assert [event["name"] for event in call["events"]] == ["first_token"]
    assert call["attributes"]["gen_ai.usage.output_tokens"] > 20
    # Phoenix knows it for a call of a language model by the GenAI attributes.
    assert call["span_kind"] == "LLM"


def test_a_preemption_is_in_the_trace_of_its_request_and_the_trace_can_be_drawn(
    node: ExampleClient, cluster: Cluster, backend: TraceBackend, record_property: Callable[[str, float], None]
) -> None:
    with pressure(cluster.address):
        for _ in range(MAX_ATTEMPTS):
            spans = ask(node, cluster, backend)
            call = check_is_one_tree(spans)
            num_preemptions = len(preemptions(call))
            if num_preemptions:
                break
    record_property("spans in a trace with preemptions", len(spans))
    record_property("preemptions in it", num_preemptions)
    assert num_preemptions, f"no request was preempted in {MAX_ATTEMPTS} attempts"
    queues = named(children(spans, call), "queue")
    assert [queue["attributes"]["pagewire.queue.reason"] for queue in queues] == [
        "arrival",
        *["preemption"] * num_preemptions,
    ]
    assert len(named(children(spans, call), "sequence")) == 1 + num_preemptions
    assert [event["name"] for event in call["events"]].count("resume") == num_preemptions

    stored, picture = OPERATE / "phoenix" / "trace.json", OPERATE / "phoenix" / "trace.png"
    stored.write_text(json.dumps(spans, indent=1))
    picture.unlink(missing_ok=True)
    command = [sys.executable, ROOT / "tools" / "trace_picture.py", stored, picture]
    subprocess.run(command, check=True, timeout=120)
    assert picture.read_bytes().startswith(b"\x89PNG")
