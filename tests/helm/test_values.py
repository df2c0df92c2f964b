"""Wrong values are refused, with the name of what is wrong; right ones are all known to the schema."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart import CHART, RELEASE, run_helm
from chart_values import leaves

SCHEMA = json.loads((CHART / "values.schema.json").read_text())


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("router.replicas=two", ["router", "replicas", "integer"]),
        ("router.replicaCount=2", ["router", "replicaCount", "not allowed"]),
        ("shard.device=tpu", ["shard", "device", "cpu", "cuda"]),
        ("model.source=s3", ["model", "source", "demo", "hub", "pvc", "image"]),
        ("model.hub.id=a b", ["model", "hub", "id"]),
        ("requests.maxTimeSeconds=0", ["requests", "maxTimeSeconds", "1"]),
        ("router.image.digest=md5:1", ["router", "image", "digest", "sha256"]),
        ("shard.kvCacheMemory=lots", ["shard", "kvCacheMemory"]),
        ("shard.extraArgs={serve}", ["shard", "extraArgs"]),
        ("tracing.samplerArg=7", ["tracing", "samplerArg"]),
        ("autoscaling.mode=vpa", ["autoscaling", "mode", "none", "hpa", "keda"]),
        ("bindAddress=localhost", ["bindAddress", "0.0.0.0"]),
        ("httpRoute.hostnames={https://a}", ["httpRoute", "hostnames"]),
        ("httpRoute.paths={v1}", ["httpRoute", "paths"]),
        ("grpcRoute.parentRefs[0].gateway=a", ["grpcRoute", "parentRefs", "gateway"]),
        ("ingress.hosts[0].host=a,ingress.hosts[0].paths[0].pathType=Any", ["ingress", "pathType", "Prefix"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_schema_refuses(helm: Path, setting: str, named: list[str]) -> None:
    run = run_helm(helm, "template", RELEASE, CHART, "--set", setting)
    assert run.returncode != 0
    assert "schema" in run.stderr
    assert not [word for word in named if word not in run.stderr], run.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("router.image.tag=latest", "router.image.tag: latest is no version"),
        ("shard.image.tag=latest", "shard.image.tag: latest is no version"),
        ("model.source=hub", "model.hub.id: needed"),
        ("model.source=pvc", "model.pvc.claimName: needed"),
        ("model.source=image", "model.image.reference: needed"),
        ("model.source=image,model.image.reference=registry:5000/model", "names no version"),
        ("model.source=image,model.image.reference=registry:5000/model:latest", "names no version"),
        (
            "model.source=hub,model.hub.id=a/b,model.hub.cache.type=existingClaim",
            "model.hub.cache.existingClaim: needed",
        ),
        (
            "model.source=hub,model.hub.id=a/b,model.hub.cache.type=volumeClaimTemplate,shard.tensorParallelSize=2",
            "model.hub.cache.type: volumeClaimTemplate",
        ),
        ("autoscaling.mode=hpa,autoscaling.minReplicas=9", "autoscaling.minReplicas: 9 is more than"),
        ("autoscaling.mode=keda", "autoscaling.keda.serverAddress: needed"),
        ("tls.router.clientCA.existingSecret=ca", "set tls.router.existingSecret"),
        ("tls.shard.routerExistingSecret=tls", "set tls.shard.existingSecret"),
        ("tracing.enabled=true", "tracing.endpoint: needed"),
        ("shard.exclusiveTopologyKey=rack", "shard.exclusiveTopologyKey: works with"),
        ("httpRoute.enabled=true", "httpRoute.parentRefs: needed"),
        ("grpcRoute.enabled=true", "grpcRoute.parentRefs: needed"),
        (
            "httpRoute.enabled=true,httpRoute.parentRefs[0].name=a,router.service.httpPort=0",
            "httpRoute.enabled: there is no HTTP",
        ),
        ("ingress.enabled=true,router.service.httpPort=0", "ingress.enabled: there is no HTTP"),
        ("backendTLSPolicy.enabled=true", "backendTLSPolicy.enabled: the router has no TLS"),
        (
            "httpRoute.enabled=true,httpRoute.parentRefs[0].name=a,grpcRoute.enabled=true,grpcRoute.parentRefs[0].name=a",
            "grpcRoute.hostnames: a gateway accepts",
        ),
    ],
    ids=lambda value: value if "=" in value else "",
)
def test_values_that_do_not_fit_together_are_refused(helm: Path, settings: str, message: str) -> None:
    run = run_helm(helm, "template", RELEASE, CHART, "--set", settings)
    assert run.returncode != 0
    assert message in run.stderr


def test_all_contradictions_are_told_at_once(helm: Path) -> None:
    run = run_helm(helm, "template", RELEASE, CHART, "--set", "model.source=hub,tracing.enabled=true")
    assert "model.hub.id" in run.stderr
    assert "tracing.endpoint" in run.stderr


def test_image_volumes_need_a_cluster_that_has_them(helm: Path) -> None:
    settings = "model.source=image,model.image.reference=registry/model:1"
    old = run_helm(helm, "template", RELEASE, CHART, "--kube-version", "1.32.0", "--set", settings)
    assert "image volumes need Kubernetes 1.33" in old.stderr
    assert run_helm(helm, "template", RELEASE, CHART, "--kube-version", "1.33.0", "--set", settings).returncode == 0


def test_old_clusters_are_refused(helm: Path) -> None:
    run = run_helm(helm, "template", RELEASE, CHART, "--kube-version", "1.28.0")
    assert run.returncode != 0
    assert "1.29" in run.stderr


def schema_objects(
    schema: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every part of the schema that lists properties."""
    if "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
    if "properties" in schema:
        yield path, schema
        for name, part in schema["properties"].items():
            yield from schema_objects(part, (*path, name))


def test_the_schema_takes_nothing_it_does_not_know() -> None:
    assert not [path for path, schema in schema_objects(SCHEMA) if schema.get("additionalProperties") is not False]


def test_the_schema_knows_the_values_and_no_others() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for path, schema in schema_objects(SCHEMA):
        known = values
        for name in path:
            known = known[name]
        # Helm itself adds "global" in charts that use this one.
        assert set(schema["properties"]) - {"global"} == set(known), ".".join(path)


def test_the_schema_is_of_a_draft_that_every_helm_3_reads() -> None:
    assert SCHEMA["$schema"] == "http://json-schema.org/draft-07/schema#"


def test_every_value_is_explained() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    documented = [
        lines[i].split(":")[0].strip()
        for i in range(1, len(lines))
        if lines[i].strip() and not lines[i].strip().startswith("#") and lines[i - 1].strip().startswith("#")
    ]
    undocumented = [
        ".".join(path) for path, _ in leaves(CHART / "values.yaml") if not any(name in documented for name in path)
    ]
    assert not undocumented
