"""Every object of every set of values is what the API server would take."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from chart import NAMESPACE, VALUE_SETS, Object, of_kind, pods_of

KUBERNETES_VERSION = "1.35"
CUSTOM_RESOURCES = Path(__file__).parent / "custom_resources"
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?)?")
MAX_STATEFUL_SET_NAME = 52
"""Its pods are labelled with its name, a dash and a hash of ten characters."""
_valid: set[str] = set()


def check_strictly(value: Object) -> None:
    """Built-in kinds by Kubernetes' own schema, in which no unknown field passes; the others by ours."""
    key = json.dumps(value, sort_keys=True)
    if key in _valid:
        return
    try:
        kubernetes_validate.validate(value, KUBERNETES_VERSION, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        schema = json.loads((CUSTOM_RESOURCES / f"{value['kind']}.json").read_text())
        jsonschema.validate(value, schema, cls=jsonschema.Draft202012Validator)
    _valid.add(key)


def test_there_are_enough_sets_of_values() -> None:
    assert len(VALUE_SETS) >= 12


def test_every_object_is_valid_strictly(objects: list[Object]) -> None:
    for value in objects:
        check_strictly(value)


def test_pods_of_custom_resources_are_valid_strictly(objects: list[Object]) -> None:
    for value in of_kind(objects, "LeaderWorkerSet"):
        pod_template = value["spec"]["leaderWorkerTemplate"]["workerTemplate"]
        check_strictly({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": pod_template})


@pytest.mark.parametrize(
    "wrong",
    [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"portz": []}},
        {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": {}, "spec": {"triggers": []}},
    ],
    ids=lambda value: value["kind"],
)
def test_the_check_refuses_what_is_wrong(wrong: dict[str, Any]) -> None:
    with pytest.raises((kubernetes_validate.ValidationError, jsonschema.ValidationError)):
        check_strictly(wrong)


def test_names_are_unique_and_short_enough(objects: list[Object]) -> None:
    names = [(value["kind"], value["metadata"]["name"]) for value in objects]
    assert len(names) == len(set(names))
    for kind, name in names:
        assert DNS_LABEL.fullmatch(name), name
        if kind in ("StatefulSet", "LeaderWorkerSet"):
            assert len(name) <= MAX_STATEFUL_SET_NAME


def test_everything_is_in_the_releases_namespace_and_labelled(objects: list[Object]) -> None:
    for value in objects:
        metadata = value["metadata"]
        assert metadata["namespace"] == NAMESPACE
        labels = metadata["labels"]
        for label in ("name", "instance", "version", "part-of", "managed-by"):
            assert labels[f"app.kubernetes.io/{label}"]
        assert all(LABEL_VALUE.fullmatch(text) for text in labels.values())


def test_selectors_select_the_pods_they_mean(objects: list[Object]) -> None:
    pods = list(pods_of(objects))
    for value in objects:
        spec = value.get("spec", {})
        component = value["metadata"]["labels"].get("app.kubernetes.io/component")
        selector = spec.get("selector", {})
        wanted = selector.get("matchLabels", selector)
        if value["kind"] in ("ServiceMonitor", "LeaderWorkerSet", "NetworkPolicy") or not wanted:
            continue
        selected = {pod.component for pod in pods if wanted.items() <= pod.labels.items()}
        assert selected == {component}, value["metadata"]["name"]


def test_the_service_monitor_selects_one_service(objects: list[Object]) -> None:
    services = of_kind(objects, "Service")
    for monitor in of_kind(objects, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        (service,) = [one for one in services if wanted <= one["metadata"]["labels"].items()]
        ports = {port["name"] for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports
