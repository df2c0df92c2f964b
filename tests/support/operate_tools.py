"""Tools that tests need and a machine may lack: without its tool a test is skipped, and the reason names the tool.

Where PAGEWIRE_REQUIRE_TOOLS=1 is set, it fails instead: there, a tool that is missing is a fault of the set-up.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPERATE = ROOT / ".operate"
"""Folder into which tools/operate/*.sh install."""
BUF = OPERATE / "buf" / "node_modules" / ".bin" / "buf"
SET_UP_TIMEOUT_S = 240
"""Below the timeout of a test, which would not say what was missing."""


def require_tool(tool: Path | str) -> Path:
    """The tool's path: given, or found on PATH by its name."""
    found = shutil.which(tool)
    return Path(found) if found else give_up(f"{Path(tool).name} is missing ({tool}): make test-operate sets it up")


def set_up(name: str) -> None:
    """Runs tools/operate/<name>.sh, which installs only what is not there yet."""
    # timeout ends what the script has started, too.
    command = ["timeout", str(SET_UP_TIMEOUT_S), ROOT / "tools" / "operate" / f"{name}.sh"]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        give_up(f"{name} could not be set up: {(run.stdout + run.stderr)[-2000:]}")


def give_up(reason: str) -> NoReturn:
    """Skips the test, or fails it where every tool is required."""
    if os.environ.get("PAGEWIRE_REQUIRE_TOOLS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
