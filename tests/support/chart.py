"""The Helm chart as tests see it: real helm renders it, and its objects are taken apart here."""

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from operate_tools import ROOT, require_tool, set_up

Object = dict[str, Any]
"""A Kubernetes object, or part of one."""

CHART = ROOT / "helm" / "pagewire"
VALUE_SETS = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
RELEASE, NAMESPACE = "trial", "serving"
HELM_TIMEOUT_S = 120


def find_helm(major: int = 4) -> Path:
    """helm of a major version, installed if it is not there. Skips the test if it cannot be had."""
    path = ROOT / ".operate" / "helm" / str(major) / "helm"
    if not path.exists():
        set_up("helm")
    return require_tool(path)


def values_of(name: str) -> Path:
    """The file of a set of values."""
    return CHART / "ci" / f"{name}-values.yaml"


def run_helm(helm: Path, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Runs helm; the caller looks at its status."""
    return subprocess.run([helm, *arguments], capture_output=True, text=True, timeout=HELM_TIMEOUT_S)


def template(helm: Path, *flags: str | Path, chart: Path = CHART) -> str:
    """Returns the output of `helm template`."""
    run = run_helm(helm, "template", RELEASE, chart, "--namespace", NAMESPACE, *flags)
    assert run.returncode == 0, run.stderr
    return run.stdout


def render(helm: Path, *flags: str | Path, chart: Path = CHART) -> list[Object]:
    """The objects of `helm template`."""
    return [value for value in yaml.safe_load_all(template(helm, *flags, chart=chart)) if value]


@dataclass(frozen=True)
class Pod:
    """A pod, or the template that an object makes pods from."""

    owner: Object
    metadata: Object
    spec: Object

    def __str__(self) -> str:
        return f"{self.owner['kind']} {self.owner['metadata']['name']}"

    @property
    def component(self) -> str:
        return str(self.metadata["labels"]["app.kubernetes.io/component"])

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.metadata["labels"])

    @property
    def container(self) -> Object:
        (container,) = self.spec["containers"]
        return dict(container)

    @property
    def arguments(self) -> list[str]:
        return list(self.container["args"])


def pods_of(objects: Sequence[Object]) -> Iterator[Pod]:
    """Every pod that the objects are or make."""
    for owner in objects:
        if owner["kind"] == "Pod":
            yield Pod(owner, owner["metadata"], owner["spec"])
        elif owner["kind"] == "LeaderWorkerSet":
            made_from = owner["spec"]["leaderWorkerTemplate"]["workerTemplate"]
            yield Pod(owner, made_from["metadata"], made_from["spec"])
        elif "template" in owner.get("spec", {}):
            made_from = owner["spec"]["template"]
            yield Pod(owner, made_from["metadata"], made_from["spec"])


def pod_of(objects: Sequence[Object], component: str) -> Pod:
    """The one pod of a component."""
    (pod,) = [pod for pod in pods_of(objects) if pod.component == component]
    return pod


def of_kind(objects: Sequence[Object], kind: str) -> list[Object]:
    """All objects of a kind."""
    return [value for value in objects if value["kind"] == kind]


def one(objects: Sequence[Object], kind: str, name: str) -> Object:
    """The object of this kind and name; the release's name goes before it."""
    (found,) = [value for value in of_kind(objects, kind) if value["metadata"]["name"] == f"{RELEASE}-{name}"]
    return found
