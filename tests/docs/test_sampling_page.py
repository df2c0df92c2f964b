"""The examples of docs/sampling.md are one program, which runs as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pagewire.parameter_table import PARAMETERS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "sampling.md").read_text()


PROGRAM = "".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))


def test_the_examples_run() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [parameter.name for parameter in PARAMETERS])
def test_every_parameter_has_an_example(name: str) -> None:
    assert re.search(rf"\b{name}=", PROGRAM)
