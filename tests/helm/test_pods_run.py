"""The rendered pods run, by their own commands, arguments, variables and probes, and a completion streams through."""

import json
import os
import signal
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from certificates import Authority, Issued
from chart import NAMESPACE, Object, of_kind, pod_of, render, values_of
from cluster import eventually, free_port, read_metrics
from otlp_receiver import OtlpReceiver, otlp_receiver
from pagewire import Client, SamplingParams, TokenDelta, Unauthenticated
from pagewire.v1 import inference_pb2, inference_pb2_grpc
from pod_process import LOOPBACK, Node, PodProcess, service_name

GRPC, HTTP, SHARD_GRPC, METRICS, RENDEZVOUS = 50051, 8000, 50052, 9400, 29500
API_KEY = "a-key-of-this-test"


@dataclass
class RunningRelease:
    """A router and a shard, ready."""

    node: Node
    objects: list[Object]
    router: PodProcess
    shard: PodProcess

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.router.ports[GRPC]}"

    @property
    def log(self) -> str:
        return f"{self.router.log}\n{self.shard.log}"

    def run_helm_test(self) -> str:
        """What the pod of `helm test` prints; it must pass."""
        test = PodProcess(self.node, pod_of(self.objects, "test"), "test-0")
        status, output = test.wait()
        assert status == 0, f"{test.log}\n{self.log}"
        return output


@contextmanager
def running(objects: list[Object], node: Node) -> Iterator[RunningRelease]:
    """Starts the router first: shards that are not there yet are waited for."""
    node.filled["/var/cache/pagewire"] = kernel_cache(node.directory)
    router_port = node.expose(service_name(objects, "router"), GRPC)
    shard_port = node.expose(service_name(objects, "shard"), SHARD_GRPC)
    with ExitStack() as stack:
        router = PodProcess(node, pod_of(objects, "router"), "router-0", {GRPC: router_port})
        stack.callback(router.stop)
        eventually(lambda: router.probe("startupProbe"), f"the router starts\n{router.log}", 90)
        assert not router.probe("readinessProbe"), "ready without a shard"
        shard = PodProcess(node, pod_of(objects, "shard"), "shard-0", {SHARD_GRPC: shard_port})
        stack.callback(shard.stop)
        shard.wait_ready()
        router.wait_ready()
        yield RunningRelease(node, objects, router, shard)


def kernel_cache(directory: Path) -> Path:
    """The mount of the kernels' caches, on a node that has compiled them before."""
    cache = directory / "kernel-cache"
    cache.mkdir()
    compiled = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pagewire"
    compiled.mkdir(parents=True, exist_ok=True)
    (cache / "numba").symlink_to(compiled)
    return cache


def ask_over_http(base_url: str, api_key: str | None = None, tls: ssl.SSLContext | None = None) -> str:
    """The text of a short completion. Raises urllib.error.HTTPError."""
    headers = {"content-type": "application/json"}
    if api_key is not None:
        headers["authorization"] = f"Bearer {api_key}"
    body = json.dumps({"prompt": "Hello, my name is", "max_tokens": 8, "ignore_eos": True}).encode()
    request = urllib.request.Request(f"{base_url}/v1/completions", body, headers)
    with urllib.request.urlopen(request, timeout=180, context=tls) as answer:
        return str(json.load(answer)["choices"][0]["text"])


def stream(client: Client, num_tokens: int) -> Iterator[TokenDelta]:
    """The deltas of a completion of so many tokens."""
    events = client.generate("Hello, my name is", SamplingParams(max_tokens=num_tokens, ignore_eos=True))
    return (event for event in events if isinstance(event, TokenDelta))


@pytest.fixture(scope="module")
def collector() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def release(
    rendered: dict[str, list[Object]], collector: OtlpReceiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningRelease]:
    """With traces to a collector."""
    node = Node(tmp_path_factory.mktemp("pods"))
    node.names["collector.observability.svc:14317"] = collector.endpoint.removeprefix("http://")
    with running(rendered["collector"], node) as release:
        yield release


def test_a_completion_streams_through_the_pods(release: RunningRelease) -> None:
    with Client(release.address) as client:
        deltas = list(stream(client, 16))
    assert sum(len(delta.token_ids) for delta in deltas) == 16
    assert "".join(delta.text for delta in deltas)


def test_a_completion_comes_over_http(release: RunningRelease) -> None:
    assert ask_over_http(f"http://{LOOPBACK}:{release.router.ports[HTTP]}")


def test_the_pod_of_helm_test_passes(release: RunningRelease) -> None:
    assert release.run_helm_test().strip()


def test_metrics_are_where_the_monitors_look(release: RunningRelease) -> None:
    router, shard = read_metrics(release.router.ports[METRICS]), read_metrics(release.shard.ports[METRICS])
    assert any(name.startswith("pagewire_group_tokens_queued{") for name in router), "what the autoscaler needs"
    assert any(name.startswith("pagewire_time_to_first_token_seconds_bucket{") for name in router)
    assert any(name.startswith("pagewire_shard_") for name in shard)


def test_the_group_is_named_after_its_pod(release: RunningRelease) -> None:
    assert 'pagewire_group_serving{group="shard-0"}' in read_metrics(release.router.ports[METRICS])


def test_traces_say_which_pod_they_come_from(release: RunningRelease, collector: OtlpReceiver) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    # The client's sampling counts, whatever the share of requests that the values ask for.
    metadata = (("traceparent", f"00-{trace_id}-b7ad6b7169203331-01"),)
    request = inference_pb2.GenerateRequest(text="Hello", sampling_params={"max_tokens": 4})
    with grpc.insecure_channel(release.address) as channel:
        assert list(inference_pb2_grpc.InferenceStub(channel).Generate(request, metadata=metadata))
    for service, pod in (("pagewire-router", "router-0"), ("pagewire-shard", "shard-0")):
        resource = collector.wait_for_span(trace_id=trace_id, service=service).resource
        assert resource["k8s.pod.name"] == resource["service.instance.id"] == pod
        assert resource["k8s.namespace.name"] == resource["service.namespace"] == NAMESPACE
        assert resource["deployment.environment.name"] == "production"


def secret_of(authority: Authority, issued: Issued) -> dict[str, bytes]:
    """A secret of type kubernetes.io/tls, with its authority's certificate."""
    files = {"tls.crt": issued.cert, "tls.key": issued.key, "ca.crt": authority.ca}
    return {name: Path(file).read_bytes() for name, file in files.items()}


@dataclass(frozen=True)
class Credentials:
    """What a client needs for the secured release."""

    ca: str
    issued: Issued

    def client(self, release: RunningRelease, api_key: str | None) -> Client:
        return Client(
            release.address, tls_ca=self.ca, tls_cert=self.issued.cert, tls_key=self.issued.key, api_key=api_key
        )


@pytest.fixture(scope="module")
def secured(
    rendered: dict[str, list[Object]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningRelease, Credentials]]:
    """With TLS on both sides, certificates asked of both, and API keys."""
    directory = tmp_path_factory.mktemp("authorities")
    servers, clients = Authority(directory / "servers"), Authority(directory / "clients")
    client = clients.issue("client")
    secrets = {
        "router-tls": secret_of(servers, servers.issue("router", LOOPBACK)),
        "client-ca": {"root.pem": Path(clients.ca).read_bytes()},
        "shard-tls": secret_of(servers, servers.issue("shard", LOOPBACK)),
        "router-to-shard-tls": secret_of(servers, servers.issue("router-to-shard")),
        "api-keys": {"keys": f"another-key\n{API_KEY}\n".encode()},
        "test-key": {"key": API_KEY.encode()},
        "test-tls": secret_of(clients, client),
    }
    with running(rendered["secure"], Node(tmp_path_factory.mktemp("pods"), secrets)) as release:
        yield release, Credentials(servers.ca, client)


def test_secured_pods_answer_plaintext_probes_and_the_pod_of_helm_test(
    secured: tuple[RunningRelease, Credentials],
) -> None:
    release, _ = secured
    assert release.router.probe("livenessProbe")
    assert release.run_helm_test().strip()


def test_secured_pods_turn_away_who_has_no_key(secured: tuple[RunningRelease, Credentials]) -> None:
    release, credentials = secured
    with credentials.client(release, None) as client, pytest.raises(Unauthenticated):
        list(stream(client, 1))


def test_http_has_the_same_certificates_and_keys(secured: tuple[RunningRelease, Credentials]) -> None:
    release, credentials = secured
    base_url = f"https://{LOOPBACK}:{release.router.ports[HTTP]}"
    tls = ssl.create_default_context(cafile=credentials.ca)
    with pytest.raises(OSError) as refused:  # noqa: PT011  The connection breaks in one of several ways.
        ask_over_http(base_url, API_KEY, tls)
    assert not isinstance(refused.value, urllib.error.HTTPError)
    tls.load_cert_chain(credentials.issued.cert, credentials.issued.key)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask_over_http(base_url, "a wrong key", tls)
    assert ask_over_http(base_url, API_KEY, tls)


def test_the_router_finishes_what_runs_before_it_ends(secured: tuple[RunningRelease, Credentials]) -> None:
    """The last test of the secured release, whose router is gone afterwards."""
    release, credentials = secured
    with credentials.client(release, API_KEY) as client:
        deltas = stream(client, 600)
        num_tokens = len(next(deltas).token_ids)
        release.router.process.send_signal(signal.SIGTERM)
        eventually(lambda: not release.router.probe("readinessProbe"), "a router that drains is not ready")
        assert num_tokens + sum(len(delta.token_ids) for delta in deltas) == 600
    assert release.router.stop() == 0, release.log


def test_the_ranks_of_a_leader_worker_set_serve_together_and_restart_together(helm: Path, tmp_path: Path) -> None:
    objects = render(helm, "--values", values_of("default"), "--set", "shard.tensorParallelSize=2")
    node = Node(tmp_path)
    node.filled["/var/cache/pagewire"] = kernel_cache(node.directory)
    router_port, shard_ports = node.expose(service_name(objects, "router"), GRPC), [free_port(), free_port()]
    # The name of the set's headless service stands for both pods.
    target = f"{one_of(objects, 'LeaderWorkerSet')}.{NAMESPACE}.svc.cluster.local"
    node.names[f"{target}:{SHARD_GRPC}"] = ",".join(f"{LOOPBACK}:{port}" for port in shard_ports)
    node.expose("leader", RENDEZVOUS)

    def rank(stack: ExitStack, index: int, attempt: int) -> PodProcess:
        prefix = "leaderworkerset.sigs.k8s.io"
        pod = PodProcess(
            node,
            pod_of(objects, "shard"),
            f"shard-{index}-{attempt}",
            {SHARD_GRPC: shard_ports[index]},
            {f"{prefix}/group-index": "0", f"{prefix}/worker-index": str(index)},
            {"LWS_LEADER_ADDRESS": "leader"},
        )
        stack.callback(pod.stop)
        return pod

    with ExitStack() as stack:
        router = PodProcess(node, pod_of(objects, "router"), "router-0", {GRPC: router_port})
        stack.callback(router.stop)
        for attempt in range(2):
            ranks = [rank(stack, index, attempt) for index in range(2)]
            for each in ranks:
                each.wait_ready()
            router.wait_ready()
            with Client(f"{LOOPBACK}:{router_port}", timeout_s=60) as client:
                assert sum(len(delta.token_ids) for delta in stream(client, 16)) == 16
            ranks[1].process.kill()
            # RecreateGroupOnPodRestart makes all pods of the group anew, because no rank goes on without the others.
            assert ranks[0].process.wait(30) == 1, ranks[0].log
            assert "rank 1 has ended" in ranks[0].log


def one_of(objects: list[Object], kind: str) -> str:
    """The name of the one object of a kind."""
    (found,) = of_kind(objects, kind)
    return str(found["metadata"]["name"])
