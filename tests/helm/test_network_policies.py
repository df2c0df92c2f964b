"""Clients reach routers, routers reach shards, monitoring reaches metrics, and that is all."""

import pytest
from chart import Object, of_kind, pod_of
from network_policies import Endpoint, may_connect

CLIENT = Endpoint({"app": "chat"})
STRANGER = Endpoint({"app": "chat"}, namespace="elsewhere")
PROMETHEUS = Endpoint({"app": "prometheus"}, namespace="monitoring")
DNS = Endpoint({"k8s-app": "kube-dns"}, namespace="kube-system")
GRPC, HTTP, SHARD_GRPC, METRICS, HEALTH, OTLP = 50051, 8000, 50052, 9400, 50059, 4317


class Network:
    """A release's policies and its pods."""

    def __init__(self, objects: list[Object]) -> None:
        self._policies = of_kind(objects, "NetworkPolicy")
        self.router = Endpoint(pod_of(objects, "router").labels)
        self.shard = Endpoint(pod_of(objects, "shard").labels)

    def allows(self, source: Endpoint, target: Endpoint, port: int, protocol: str = "TCP") -> bool:
        return may_connect(self._policies, source, target, port, protocol)


@pytest.fixture
def network(rendered: dict[str, list[Object]]) -> Network:
    return Network(rendered["default"])


def test_clients_reach_routers_and_nothing_else(network: Network) -> None:
    assert network.allows(CLIENT, network.router, GRPC)
    assert network.allows(CLIENT, network.router, HTTP)
    assert not network.allows(CLIENT, network.shard, SHARD_GRPC)
    assert not network.allows(CLIENT, network.router, METRICS)
    assert not network.allows(CLIENT, network.shard, METRICS)


def test_strangers_reach_nothing(network: Network) -> None:
    for target in (network.router, network.shard):
        assert not any(network.allows(STRANGER, target, port) for port in (GRPC, HTTP, SHARD_GRPC, METRICS, HEALTH))


def test_routers_alone_reach_shards(network: Network) -> None:
    assert network.allows(network.router, network.shard, SHARD_GRPC)
    assert not network.allows(network.shard, network.shard, SHARD_GRPC)
    assert not network.allows(network.shard, network.router, GRPC)
    assert not network.allows(network.router, network.shard, METRICS)


def test_monitoring_reads_metrics_and_nothing_else(network: Network) -> None:
    for target in (network.router, network.shard):
        assert network.allows(PROMETHEUS, target, METRICS)
        assert not network.allows(PROMETHEUS, target, HEALTH)
    assert not network.allows(PROMETHEUS, network.router, GRPC)


def test_pods_reach_dns_and_not_the_world(network: Network) -> None:
    for source in (network.router, network.shard):
        assert network.allows(source, DNS, 53, "UDP")
        assert network.allows(source, DNS, 53, "TCP")
        assert not network.allows(source, Endpoint(namespace="elsewhere"), 443)
        assert not network.allows(source, CLIENT, GRPC)


def test_helm_test_reaches_the_router_whoever_the_clients_are(rendered: dict[str, list[Object]]) -> None:
    network = Network(rendered["default"])
    test = Endpoint(pod_of(rendered["default"], "test").labels)
    assert network.allows(test, network.router, GRPC)
    assert not network.allows(test, network.shard, SHARD_GRPC)


def test_ranks_of_a_group_reach_one_another_on_any_port(rendered: dict[str, list[Object]]) -> None:
    network = Network(rendered["tensor-parallel"])
    assert network.allows(network.shard, network.shard, 41234)
    assert not network.allows(network.router, network.shard, 41234)


def test_only_the_hub_opens_the_way_out(rendered: dict[str, list[Object]]) -> None:
    def ways_out(name: str) -> list[Object]:
        policies = of_kind(rendered[name], "NetworkPolicy")
        rules = [rule for policy in policies for rule in policy["spec"].get("egress") or []]
        return [rule for rule in rules for peer in rule["to"] if "ipBlock" in peer]

    assert not ways_out("default")
    assert not ways_out("pvc")
    (rule,) = ways_out("gpu-hub")
    assert rule["ports"] == [{"protocol": "TCP", "port": 443}]
    assert "169.254.0.0/16" in rule["to"][0]["ipBlock"]["except"], "clouds' metadata services"


def test_traces_reach_the_collector_on_its_own_port(rendered: dict[str, list[Object]]) -> None:
    network = Network(rendered["collector"])
    collector = Endpoint(namespace="observability")
    for source in (network.router, network.shard):
        assert network.allows(source, collector, 14317)
        assert not network.allows(source, collector, OTLP)
        assert not network.allows(source, STRANGER, 14317)


def test_traces_reach_the_charts_jaeger(rendered: dict[str, list[Object]]) -> None:
    network = Network(rendered["jaeger"])
    jaeger = Endpoint(pod_of(rendered["jaeger"], "jaeger").labels)
    for source in (network.router, network.shard):
        assert network.allows(source, jaeger, OTLP)
    assert network.allows(CLIENT, jaeger, 16686)
    assert not network.allows(STRANGER, jaeger, 16686)
    assert not network.allows(jaeger, network.shard, SHARD_GRPC)


@pytest.mark.parametrize(
    ("values", "namespace"), [("gateway", "gateways"), ("ingress", "ingress-nginx")], ids=["gateway", "ingress"]
)
def test_gateways_can_be_named(rendered: dict[str, list[Object]], values: str, namespace: str) -> None:
    network = Network(rendered[values])
    gateway = Endpoint(namespace=namespace)
    assert network.allows(gateway, network.router, HTTP)
    assert network.allows(gateway, network.router, GRPC)
    assert not network.allows(gateway, network.router, METRICS)
    assert not network.allows(CLIENT, network.router, HTTP), "every client has to come through the gateway"


def test_scrapers_can_be_named(rendered: dict[str, list[Object]]) -> None:
    network = Network(rendered["monitoring"])
    assert network.allows(Endpoint(namespace="observability"), network.shard, METRICS)
    assert not network.allows(PROMETHEUS, network.shard, METRICS)


def test_policies_can_be_left_to_the_platform(rendered: dict[str, list[Object]]) -> None:
    assert not of_kind(rendered["openshift"], "NetworkPolicy")
