"""The chart by helm 3 and helm 4: linted, rendered alike, installed, upgraded, tested, rolled back and removed."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chart import CHART, HELM_TIMEOUT_S, NAMESPACE, RELEASE, VALUE_SETS, find_helm, run_helm, template, values_of
from kube_api import KubeApi, kube_api

pytestmark = pytest.mark.operate

MAJORS = (3, 4)


@pytest.fixture(params=MAJORS, ids=lambda major: f"helm{major}")
def helm(request: pytest.FixtureRequest) -> Path:
    return find_helm(request.param)


@pytest.fixture
def api() -> Iterator[KubeApi]:
    with kube_api("default", NAMESPACE) as api:
        yield api


Release = Callable[..., str]


@pytest.fixture
def release(helm: Path, api: KubeApi, tmp_path: Path) -> Release:
    """Runs a subcommand of helm on the release, against the API stand-in; returns what it prints."""
    environment = {**os.environ, "HELM_KUBEAPISERVER": api.url, "KUBECONFIG": "/dev/null", "HOME": str(tmp_path)}

    def run(command: str, *arguments: str | Path) -> str:
        done = subprocess.run(
            [helm, command, RELEASE, *arguments, "--namespace", NAMESPACE],
            env=environment,
            capture_output=True,
            text=True,
            timeout=HELM_TIMEOUT_S,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n" + "\n".join(api.requests[-20:])
        return done.stdout

    return run


@pytest.mark.parametrize("values", VALUE_SETS)
def test_the_chart_passes_strict_lint(helm: Path, values: str) -> None:
    run = run_helm(helm, "lint", "--strict", CHART, "--values", values_of(values))
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 chart(s) failed" in run.stdout


@pytest.mark.parametrize("values", VALUE_SETS)
def test_both_majors_render_the_same(values: str) -> None:
    first, second = (template(find_helm(major), "--values", values_of(values)) for major in MAJORS)
    assert first == second


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("router.replicas=two", ["router", "replicas", "integer"]),
        ("router.replicaCount=2", ["router", "replicaCount", "not allowed"]),
        ("model.source=s3", ["model", "source", "demo", "hub"]),
        ("model.source=hub", ["model.hub.id: needed"]),
    ],
)
def test_both_refuse_wrong_values_by_name(helm: Path, setting: str, named: list[str]) -> None:
    run = run_helm(helm, "template", RELEASE, CHART, "--set", setting)
    assert run.returncode != 0
    assert not [word for word in named if word not in run.stderr], run.stderr


def test_a_package_holds_the_chart_and_not_its_checks(helm: Path, tmp_path: Path) -> None:
    run = run_helm(helm, "package", CHART, "--destination", tmp_path)
    assert run.returncode == 0, run.stderr
    (package,) = tmp_path.glob("pagewire-*.tgz")
    names = subprocess.run(["tar", "tzf", package], capture_output=True, text=True, check=True).stdout.splitlines()
    assert "pagewire/values.schema.json" in names
    assert not [name for name in names if "/ci/" in name or "policy-findings" in name]


def test_the_life_of_a_release(api: KubeApi, release: Release) -> None:
    notes = release("install", CHART, "--values", values_of("default"))
    assert "pagewire complete" in notes
    installed = api.kinds(NAMESPACE)
    assert installed["Deployment"] == [f"{RELEASE}-pagewire-router"]
    assert len(installed["NetworkPolicy"]) == 5

    release("upgrade", CHART, "--set", "shard.replicas=3,networkPolicy.enabled=false")
    upgraded = api.kinds(NAMESPACE)
    assert "NetworkPolicy" not in upgraded
    assert shard_replicas(api) == 3

    assert "Succeeded" in release("test")
    assert "Pod" not in api.kinds(NAMESPACE), "the test's pod is removed"

    release("rollback", "1")
    assert api.kinds(NAMESPACE) == installed
    assert shard_replicas(api) == 1
    assert len(release("history").splitlines()) == 1 + 3

    release("uninstall")
    assert api.kinds(NAMESPACE) == {}


@pytest.mark.parametrize("values", [name for name in VALUE_SETS if name != "default"])
def test_every_set_of_values_installs_and_leaves_nothing(api: KubeApi, release: Release, values: str) -> None:
    release("install", CHART, "--values", values_of(values))
    assert api.kinds(NAMESPACE)
    release("uninstall")
    assert api.kinds(NAMESPACE) == {}


def shard_replicas(api: KubeApi) -> int:
    """What the API has for the shards' StatefulSet."""
    name = f"{RELEASE}-pagewire-shard"
    return int(api.store.objects[("StatefulSet", NAMESPACE, name)]["spec"]["replicas"])
