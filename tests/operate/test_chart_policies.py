"""Every set of values is scanned by checkov, and all that it finds is explained in policy-findings.yaml."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart import CHART, VALUE_SETS, find_helm, pods_of, render, values_of
from operate_tools import ROOT, require_tool

pytestmark = pytest.mark.operate

SCAN_TIMEOUT_S = 600
EXPLAINED = yaml.safe_load((CHART / "policy-findings.yaml").read_text())


@pytest.fixture(scope="module")
def checkov() -> Path:
    return require_tool(ROOT / ".operate" / "checkov" / "bin" / "checkov")


@pytest.fixture(scope="module")
def found(checkov: Path, tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str]]:
    """Check and component, or check and Dockerfile, of all findings."""
    manifests = tmp_path_factory.mktemp("manifests")
    helm = find_helm()
    for name in VALUE_SETS:
        objects = render(helm, "--values", values_of(name))
        # Pods within custom resources would not be looked at.
        for pod in [pod for pod in pods_of(objects) if pod.owner["kind"] == "LeaderWorkerSet"]:
            metadata = {**pod.owner["metadata"], **pod.metadata}
            objects.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod.spec})
        # Findings are told apart by component.
        for value in objects:
            value["metadata"]["name"] = value["metadata"]["labels"].get("app.kubernetes.io/component", "release")
        (manifests / f"{name}.yaml").write_text(yaml.safe_dump_all(objects))
    in_manifests = scan(checkov, "kubernetes", manifests)
    in_images = scan(checkov, "dockerfile", ROOT / "docker")
    assert in_manifests["summary"]["passed"] > 100 * len(VALUE_SETS)
    assert in_images["summary"]["passed"] > 0
    return {(check["check_id"], check["resource"].split(".")[2]) for check in failed(in_manifests)} | {
        (check["check_id"], Path(check["file_path"]).name) for check in failed(in_images)
    }


def scan(checkov: Path, framework: str, directory: Path) -> dict[str, Any]:
    """A scan's report."""
    run = subprocess.run(
        [checkov, "--directory", directory, "--framework", framework, "--skip-download", "--output", "json"],
        capture_output=True,
        text=True,
        timeout=SCAN_TIMEOUT_S,
    )
    report: dict[str, Any] = json.loads(run.stdout)
    assert not report["summary"]["parsing_errors"], run.stderr
    return report


def failed(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What a scan found."""
    findings: list[dict[str, Any]] = report["results"]["failed_checks"]
    return findings


def test_every_finding_is_explained(found: set[tuple[str, str]]) -> None:
    assert found - {(entry["check"], place) for entry in EXPLAINED for place in entry["where"]} == set()


def test_no_explanation_is_left_over(found: set[tuple[str, str]]) -> None:
    assert {(entry["check"], place) for entry in EXPLAINED for place in entry["where"]} - found == set()


def test_explanations_say_why() -> None:
    assert all(len(entry["reason"]) > 30 for entry in EXPLAINED)
