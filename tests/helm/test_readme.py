"""The chart's README lists its values as values.yaml has them."""

import subprocess
import sys

from operate_tools import ROOT


def test_the_table_of_values_is_up_to_date() -> None:
    command = [sys.executable, ROOT / "tools" / "chart_readme.py", "--check"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_files_that_the_readme_names_exist() -> None:
    readme = (ROOT / "helm" / "pagewire" / "README.md").read_text()
    for name in ("helm/pagewire/ci/gpu-hub-values.yaml", "docs/deployment.md"):
        assert name in readme
        assert (ROOT / name).exists()
