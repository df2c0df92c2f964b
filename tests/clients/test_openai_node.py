"""OpenAI's client for JavaScript, in Node: see node/openai.test.js."""

import os
import subprocess

from http_clients import KEY, Server
from operate_tools import ROOT, give_up, require_tool, set_up

MIN_NODE = 20
FOLDER = ROOT / "tests" / "clients" / "node"


def test_openai_s_client_for_javascript(server: Server, guarded: Server) -> None:
    node = require_tool("node")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.lstrip("v").partition(".")[0]) < MIN_NODE:
        give_up(f"node is {version}; OpenAI's client needs {MIN_NODE} or later")
    set_up("openai_node")
    environment = {
        "PAGEWIRE_URL": server.url,
        "PAGEWIRE_METRICS_URL": f"http://127.0.0.1:{server.metrics_port}/metrics",
        "PAGEWIRE_KEYED_URL": guarded.url,
        "PAGEWIRE_KEY": KEY,
    }
    command = [str(node), "--test", "openai.test.js"]
    run = subprocess.run(
        command, cwd=FOLDER, env={**os.environ, **environment}, capture_output=True, text=True, timeout=200
    )
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-2000:]
    assert "# pass 8" in run.stdout
