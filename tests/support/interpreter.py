"""Where the tests of Triton kernels run: on the GPU if there is one, else in Triton's interpreter.

The interpreter must be chosen before triton is imported. Without a GPU, each file of such tests therefore has one test
that runs the others of the file in a further process. bfloat16 is left out there: the interpreter computes it wrongly.
"""

import os
import subprocess
import sys

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
IN_INTERPRETER = os.environ.get("TRITON_INTERPRET") == "1"

runs_kernels = pytest.mark.skipif(not HAS_GPU and not IN_INTERPRETER, reason="runs in the interpreter's own process")
"""Marks a test that calls kernels."""
starts_interpreter = pytest.mark.skipif(HAS_GPU or IN_INTERPRETER, reason="the kernels run in this process")
"""Marks the test that calls run_in_interpreter."""


def run_in_interpreter(file: str) -> None:
    """Runs a file's tests in Triton's interpreter; they must pass."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", file]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
