"""What leads clients from outside to the router's HTTP and gRPC ports."""

from pathlib import Path

import pytest
from chart import VALUE_SETS, Object, of_kind, one, render, values_of

KINDS = ("HTTPRoute", "GRPCRoute", "Ingress", "BackendTLSPolicy")


def port_of(objects: list[Object], name: str) -> Object:
    """A port of the router's service."""
    (port,) = [port for port in one(objects, "Service", "pagewire-router")["spec"]["ports"] if port["name"] == name]
    return dict(port)


def test_there_are_none_unless_asked_for(rendered: dict[str, list[Object]]) -> None:
    for values in set(VALUE_SETS) - {"gateway", "ingress"}:
        assert not [kind for kind in KINDS if of_kind(rendered[values], kind)], values


@pytest.mark.parametrize(("kind", "port"), [("HTTPRoute", "http"), ("GRPCRoute", "grpc")])
def test_a_route_leads_to_its_port_of_the_routers_service(
    rendered: dict[str, list[Object]], kind: str, port: str
) -> None:
    objects = rendered["gateway"]
    route = one(objects, kind, "pagewire-router")
    (rule,) = route["spec"]["rules"]
    (backend,) = rule["backendRefs"]
    assert backend == {"name": route["metadata"]["name"], "port": port_of(objects, port)["port"]}
    assert route["spec"]["parentRefs"] == [{"name": "public", "namespace": "gateways", "sectionName": "https"}]


def test_routes_of_both_kinds_have_host_names_of_their_own(rendered: dict[str, list[Object]]) -> None:
    """A gateway accepts one kind of route for each host name."""
    (http,) = of_kind(rendered["gateway"], "HTTPRoute")
    (grpc,) = of_kind(rendered["gateway"], "GRPCRoute")
    assert http["spec"]["hostnames"] == ["llm.example.com"]
    assert grpc["spec"]["hostnames"] == ["grpc.llm.example.com"]


def test_a_gateway_speaks_tls_to_the_router_where_that_is_asked_for(
    rendered: dict[str, list[Object]], helm: Path
) -> None:
    policy = one(rendered["gateway"], "BackendTLSPolicy", "pagewire-router")["spec"]
    (target,) = policy["targetRefs"]
    service = one(rendered["gateway"], "Service", "pagewire-router")["metadata"]
    assert target == {"group": "", "kind": "Service", "name": service["name"]}
    assert policy["validation"] == {
        "hostname": f"{service['name']}.{service['namespace']}.svc.cluster.local",
        "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "router-ca"}],
    }
    flags = "tls.router.existingSecret=a,backendTLSPolicy.enabled=true,backendTLSPolicy.hostname=llm.internal"
    (known,) = of_kind(render(helm, "--set", flags), "BackendTLSPolicy")
    assert known["spec"]["validation"] == {"hostname": "llm.internal", "wellKnownCACertificates": "System"}


def test_a_gateway_ends_no_stream_before_the_router_does(rendered: dict[str, list[Object]]) -> None:
    (route,) = of_kind(rendered["gateway"], "HTTPRoute")
    assert [rule["timeouts"] for rule in route["spec"]["rules"]] == [{"request": "0s"}]


def test_paths_choose_what_is_public(rendered: dict[str, list[Object]], helm: Path) -> None:
    def paths(objects: list[Object]) -> list[str]:
        (route,) = of_kind(objects, "HTTPRoute")
        return [match["path"]["value"] for rule in route["spec"]["rules"] for match in rule["matches"]]

    assert paths(rendered["gateway"]) == ["/v1", "/health"]
    assert paths(render(helm, "--set", "httpRoute.enabled=true,httpRoute.parentRefs[0].name=public")) == ["/"]


def test_an_ingress_leads_to_http(rendered: dict[str, list[Object]], helm: Path) -> None:
    objects = rendered["ingress"]
    ingress = one(objects, "Ingress", "pagewire-router")
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert (rule["host"], path["path"], path["pathType"]) == ("llm.example.com", "/v1", "Prefix")
    assert path["backend"]["service"] == {"name": ingress["metadata"]["name"], "port": {"name": "http"}}
    assert ingress["spec"]["ingressClassName"] == "nginx"
    assert ingress["spec"]["tls"] == [{"secretName": "llm-tls", "hosts": ["llm.example.com"]}]
    (rule,) = one(render(helm, "--set", "ingress.enabled=true"), "Ingress", "pagewire-router")["spec"]["rules"]
    assert "host" not in rule, "every host"


@pytest.mark.parametrize(("values", "protocol"), [("default", "http"), ("secure", "https")])
def test_the_service_says_which_protocol_its_http_port_speaks(
    rendered: dict[str, list[Object]], values: str, protocol: str
) -> None:
    assert port_of(rendered[values], "http")["appProtocol"] == protocol


def test_without_http_there_is_no_port_for_it(helm: Path) -> None:
    objects = render(helm, "--values", values_of("default"), "--set", "router.service.httpPort=0")
    for service in of_kind(objects, "Service"):
        assert "http" not in {port["name"] for port in service["spec"]["ports"]}
    for policy in of_kind(objects, "NetworkPolicy"):
        rules = policy["spec"].get("ingress") or []
        assert 8000 not in [port["port"] for rule in rules for port in rule.get("ports", [])]
