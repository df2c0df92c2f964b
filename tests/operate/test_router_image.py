"""The build stage of the router's image, step by step on this machine: there is no container engine to ask for."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from operate_tools import ROOT

pytestmark = pytest.mark.operate

INSTALLED = "/opt/pagewire"
STEP_TIMEOUT_S = 600


def build_stage() -> list[str]:
    """The instructions from the first FROM to the second."""
    text = (ROOT / "docker" / "router.Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    starts = [i for i in range(len(lines)) if lines[i].startswith("FROM ")]
    return lines[starts[0] + 1 : starts[1]]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stage has installed pagewire."""
    directory = tmp_path_factory.mktemp("image")
    source, target = directory / "source", directory / "pagewire"
    source.mkdir()
    for line in build_stage():
        instruction, _, rest = line.partition(" ")
        if instruction == "COPY":
            *names, destination = shlex.split(rest)
            for name in names:
                copy(ROOT / name, source / destination)
        elif instruction == "RUN":
            command = rest.replace(INSTALLED, str(target))
            run = subprocess.run(
                ["sh", "-c", command], cwd=source, capture_output=True, text=True, timeout=STEP_TIMEOUT_S
            )
            assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"
        else:
            assert instruction == "WORKDIR"
    return target


def copy(original: Path, destination: Path) -> None:
    """As COPY does: a file into the directory, a directory's content into it."""
    if original.is_dir():
        shutil.copytree(original, destination, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        destination.mkdir(parents=True, exist_ok=True)
        shutil.copy(original, destination)


@pytest.mark.parametrize("command", ["pagewire-router", "pagewire"])
def test_the_images_commands_run(installed: Path, command: str) -> None:
    run = subprocess.run([installed / "bin" / command, "--help"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"usage: {command}")


def test_no_model_library_is_inside(installed: Path) -> None:
    listed = subprocess.run([installed / "bin" / "pip", "list"], capture_output=True, text=True, check=True, timeout=60)
    names = {line.split()[0] for line in listed.stdout.splitlines() if line.strip()}
    assert {"pagewire", "grpcio", "tokenizers"} <= names
    assert not names & {"torch", "triton", "transformers", "numba", "numpy"}
