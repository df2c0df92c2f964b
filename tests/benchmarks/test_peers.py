"""The comparison with peers refuses to record a figure of a peer that died; a script stands in for vLLM's command."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import contest  # noqa: E402
import peers  # noqa: E402

VLLM = """#!{python}
import http.server, json, os, sys, threading
mode = os.environ["FAKE_VLLM"]

def option(name):
    return sys.argv[sys.argv.index(name) + 1]

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            os._exit(3)
        self.send_response(200)
        self.end_headers()
    def log_message(self, *args):
        pass

if sys.argv[1] == "serve":
    if mode == "dies at start":
        sys.exit(7)
    http.server.ThreadingHTTPServer(("127.0.0.1", int(option("--port"))), Handler).serve_forever()
else:
    import urllib.request
    result = {{"completed": 512, "total_output_tokens": 512 * 128, "output_throughput": 10.0}}
    if mode.startswith("dies under load"):
        try:
            urllib.request.urlopen("http://127.0.0.1:" + option("--port") + "/die")
        except OSError:
            pass
        if mode == "dies under load":
            result = {{"completed": 0, "total_output_tokens": 0, "output_throughput": 0.0}}
    if mode == "answers too little":
        result["total_output_tokens"] = 511 * 128
    if mode == "generator fails":
        sys.exit(4)
    with open(os.path.join(option("--result-dir"), option("--result-filename")), "w") as file:
        json.dump(result, file)
"""


@pytest.fixture
def fake_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The interpreter of an environment whose `vllm` does what FAKE_VLLM says."""
    command = tmp_path / "vllm"
    command.write_text(VLLM.format(python=sys.executable))
    command.chmod(0o755)
    monkeypatch.setattr(peers, "POLL_S", 0.05)
    return str(tmp_path / "python")


def test_a_peer_that_answers_everything_gets_its_figures(fake_vllm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM", "lives")
    assert peers.serve_vllm(fake_vllm, "model", seed=0)["output_throughput"] == 10.0


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("dies at start", "ended with status 7 before it was healthy"),
        ("dies under load", "vllm answered 0 of 512 requests"),
        ("dies under load after its answers", "vllm serve died under load"),
        ("answers too little", "with 65408 tokens of 65536"),
    ],
)
def test_a_peer_that_dies_or_answers_too_little_ends_the_run(
    fake_vllm: str, monkeypatch: pytest.MonkeyPatch, mode: str, message: str
) -> None:
    monkeypatch.setenv("FAKE_VLLM", mode)
    with pytest.raises(RuntimeError, match=message):
        peers.serve_vllm(fake_vllm, "model", seed=0)


def test_a_load_generator_that_fails_ends_the_run(fake_vllm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM", "generator fails")
    with pytest.raises(subprocess.CalledProcessError):
        peers.serve_vllm(fake_vllm, "model", seed=0)


def test_a_server_that_never_answers_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "VLLM_START_TIMEOUT_S", 0.2)
    monkeypatch.setattr(peers, "POLL_S", 0.05)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            with pytest.raises(RuntimeError, match=r"not healthy within 0 s"):
                peers._wait_until_healthy(process, unused.getsockname()[1])
    finally:
        process.kill()
        process.wait()


WORKER = """
import json, os, sys
print(json.dumps({"engine": "fake 1"}), flush=True)
if os.environ["FAKE_WORKER"] == "dies before its turn":
    sys.exit(6)
for line in sys.stdin:
    prompts = json.loads(line)["prompts"]
    if os.environ["FAKE_WORKER"] == "dies":
        sys.exit(5)
    answers = [[1] * (4 if os.environ["FAKE_WORKER"] == "lives" else 3) for _ in prompts]
    print(json.dumps({"seconds": 1.0, "token_ids": answers}), flush=True)
"""


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("lives", None),
        ("dies", "ended with status 5"),
        ("dies before its turn", "ended with status 6"),
        ("stops early", "with 4 tokens"),
    ],
)
def test_an_offline_engine_that_dies_or_answers_too_little_ends_the_run(
    mode: str, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    monkeypatch.setattr(contest, "WORKER", script)
    monkeypatch.setenv("FAKE_WORKER", mode)
    with contest.Worker(contest.Entrant("fake", "float32"), tmp_path) as worker:
        if mode == "dies before its turn":
            worker._thaw()
            worker._process.wait(20)
        if message is None:
            assert worker.generate([[1], [2]], 4).token_ids == [[1] * 4] * 2
        else:
            with pytest.raises(RuntimeError, match=message):
                worker.generate([[1], [2]], 4)


def test_pagewire_has_to_answer_everything_too() -> None:
    whole: dict[str, Any] = {"completed": 512, "total_output_tokens": 512 * 128}
    assert peers.checked("pagewire", whole) is whole
    with pytest.raises(RuntimeError, match="pagewire answered 511 of 512"):
        peers.checked("pagewire", whole | {"completed": 511})
