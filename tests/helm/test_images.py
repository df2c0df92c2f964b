"""The images: pinned bases, no root, the commands that the chart calls, and no model library in the router's."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from chart import Object, pod_of
from operate_tools import ROOT

COMPONENTS = ("router", "shard")
BASE = re.compile(r"python:3\.\d+\.\d+-slim-bookworm@sha256:[0-9a-f]{64}")


def dockerfile(component: str) -> list[str]:
    """Its instructions, each in one line."""
    text = (ROOT / "docker" / f"{component}.Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [line for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("component", COMPONENTS)
def test_bases_are_pinned_by_digest(component: str) -> None:
    instructions = dockerfile(component)
    (base,) = [line.partition("=")[2] for line in instructions if line.startswith("ARG PYTHON_IMAGE=")]
    assert BASE.fullmatch(base)
    assert {line.split()[1] for line in instructions if line.startswith("FROM ")} == {"${PYTHON_IMAGE}"}


def test_both_images_have_one_base() -> None:
    bases = {line for component in COMPONENTS for line in dockerfile(component) if line.startswith("ARG PYTHON_IMAGE=")}
    assert len(bases) == 1


@pytest.mark.parametrize("component", COMPONENTS)
def test_images_run_as_the_charts_user(component: str, rendered: dict[str, list[Object]]) -> None:
    security = pod_of(rendered["default"], component).spec["securityContext"]
    assert f"USER {security['runAsUser']}:{security['runAsGroup']}" in dockerfile(component)


@pytest.mark.parametrize("component", COMPONENTS)
def test_images_start_what_the_chart_starts(component: str, rendered: dict[str, list[Object]]) -> None:
    command = pod_of(rendered["default"], component).container["command"]
    assert f'ENTRYPOINT ["{command[0]}"]' in dockerfile(component)
    exposed = {int(port) for line in dockerfile(component) if line.startswith("EXPOSE") for port in line.split()[1:]}
    ports = pod_of(rendered["default"], component).container["ports"]
    assert exposed == {port["containerPort"] for port in ports}


@pytest.mark.parametrize("component", COMPONENTS)
def test_images_install_what_is_tested(component: str) -> None:
    installs = [line for line in dockerfile(component) if "pip install" in line]
    assert installs
    for line in installs:
        assert line.count("pip install") == line.count("--constraint constraints.txt")


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_package_of_the_wheel_is_copied(component: str) -> None:
    """The build backend wants all of them; of what an image does not run, __init__.py is enough."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    copied = {source for line in dockerfile(component) if line.startswith("COPY ") for source in line.split()[1:-1]}
    for package in build["targets"]["wheel"]["packages"]:
        folder = package.split("/")[0]
        assert {folder, f"{package}/__init__.py"} & copied, package
    needed = {"client", "common", component} | ({"kernels"} if component == "shard" else set())
    assert needed <= copied


@pytest.mark.parametrize("component", COMPONENTS)
def test_what_is_copied_is_there_and_not_ignored(component: str) -> None:
    allowed = {line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    for line in dockerfile(component):
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
                assert any(source == entry or source.startswith(f"{entry}/") for entry in allowed), source


def test_the_routers_requirements_hold_no_model_library() -> None:
    run = subprocess.run(
        [sys.executable, "docker/requirements.py", "router"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = {re.split(r"[<>=!~;\[ ]", line)[0] for line in run.stdout.splitlines()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert len(names) == len(set(project["dependencies"]) | set(project["optional-dependencies"]["router"]))
    assert not names & {"torch", "triton", "transformers", "numba"}


def test_nothing_else_reaches_the_build() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert next(line for line in lines if not line.startswith("#")) == "*"
    assert not [line for line in lines if line.startswith("!") and not (Path(ROOT) / line[1:]).exists()]
