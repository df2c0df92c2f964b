"""The program for Node in docs/openai.md runs as it stands there."""

import re
import subprocess
from pathlib import Path

from http_clients import Server
from operate_tools import ROOT, require_tool, set_up

PAGE = ROOT / "docs" / "openai.md"
PACKAGES = ROOT / "tests" / "clients" / "node" / "node_modules"


def test_the_program_for_node_streams_an_answer(server: Server, tmp_path: Path) -> None:
    node = require_tool("node")
    set_up("openai_node")
    (program,) = re.findall(r"^```js\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert "http://localhost:8000" in program
    (tmp_path / "program.mjs").write_text(program.replace("http://localhost:8000", server.url))
    (tmp_path / "node_modules").symlink_to(PACKAGES)
    run = subprocess.run([node, "program.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()
