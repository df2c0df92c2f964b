"""buf breaking against protos/released.binpb: additions pass, what would break a client of the release does not."""

import shutil
import subprocess
from pathlib import Path

import pytest
from operate_tools import BUF, ROOT, require_tool

BREAKING_CHANGES = {
    "another type": ("optional float temperature = 5;", "optional double temperature = 5;", '"temperature"'),
    "another number": ("optional float temperature = 5;", "optional float temperature = 50;", '"temperature"'),
    "another name": ("uint32 cached_tokens = 3;", "uint32 cached = 3;", '"cached_tokens"'),
    "a field gone": ("  uint32 cached_tokens = 3;\n", "", '"cached_tokens"'),
    "no stream": ("returns (stream GenerateResponse)", "returns (GenerateResponse)", '"Generate"'),
    "another method": ("rpc Tokenize(", "rpc Encode(", '"Tokenize"'),
    "another value": ("FINISH_REASON_ABORT = 3;", "FINISH_REASON_ABORT = 4;", '"FinishReason"'),
}
"""What of inference.proto is replaced by what, and what buf must name."""


def breaking(protos: Path) -> subprocess.CompletedProcess[str]:
    """buf's verdict on a folder of protos."""
    command = [require_tool(BUF), "breaking", protos, "--against", ROOT / "protos" / "released.binpb"]
    return subprocess.run(command, capture_output=True, text=True, timeout=180)


def changed_protos(directory: Path, old: str, new: str) -> Path:
    """A copy of the protos in which inference.proto has `new` in place of `old`."""
    protos = Path(shutil.copytree(ROOT / "protos", directory / "protos"))
    inference = protos / "pagewire" / "v1" / "inference.proto"
    text = inference.read_text()
    assert text.count(old) == 1, f"{old} is not in inference.proto once"
    inference.write_text(text.replace(old, new))
    return protos


def test_the_protos_keep_what_was_released() -> None:
    run = breaking(ROOT / "protos")
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("change", BREAKING_CHANGES)
def test_a_breaking_change_is_found_and_named(tmp_path: Path, change: str) -> None:
    old, new, named = BREAKING_CHANGES[change]
    run = breaking(changed_protos(tmp_path, old, new))
    assert run.returncode == 100, run.stdout + run.stderr
    assert named in run.stdout


def test_an_added_field_is_not_a_breaking_change(tmp_path: Path) -> None:
    old = "  uint32 cached_tokens = 3;\n"
    run = breaking(changed_protos(tmp_path, old, f"{old}  uint32 added_tokens = 4;\n"))
    assert run.returncode == 0, run.stdout + run.stderr
