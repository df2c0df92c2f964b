"""Arize Phoenix as a process of the test: an OTLP trace backend whose REST API says what it has stored."""

import json
import os
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import STOP_TIMEOUT_S, eventually, free_port
from operate_tools import OPERATE, require_tool

START_TIMEOUT_S = 180.0
PROJECT = "pagewire"
RESOURCE = f"openinference.project.name={PROJECT}"
"""Value of OTEL_RESOURCE_ATTRIBUTES by which spans are assigned to the project."""


@dataclass(frozen=True)
class TraceBackend:
    """A running Phoenix."""

    url: str
    otlp_endpoint: str
    """OTLP over gRPC."""

    def spans(self) -> list[dict[str, Any]]:
        """All that it has stored for the project, in order of their start. Empty before the first has come."""
        spans: list[dict[str, Any]] = []
        cursor = ""
        while True:
            try:
                page = _get(f"{self.url}/v1/projects/{PROJECT}/spans?limit=1000{cursor}")
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return []
                raise
            spans += page["data"]
            if not page.get("next_cursor"):
                return sorted(spans, key=lambda span: (span["start_time"], span["end_time"]))
            cursor = f"&cursor={page['next_cursor']}"

    def trace(self, trace_id: str) -> list[dict[str, Any]]:
        """The spans of one trace."""
        return [span for span in self.spans() if span["context"]["trace_id"] == trace_id]


@contextmanager
def trace_backend() -> Iterator[TraceBackend]:
    """Phoenix on free ports, with a database that goes with it."""
    program = require_tool(OPERATE / "phoenix" / "venv" / "bin" / "phoenix")
    port, otlp_port = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="pw-") as name, (Path(name) / "log").open("w") as log:
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("OTEL_")},
            "PHOENIX_WORKING_DIR": name,
            "PHOENIX_HOST": "127.0.0.1",
            "PHOENIX_PORT": str(port),
            "PHOENIX_GRPC_PORT": str(otlp_port),
            "PHOENIX_TELEMETRY_ENABLED": "false",
        }
        process = subprocess.Popen([program, "serve"], cwd=name, env=environment, stdout=log, stderr=log)
        try:
            backend = TraceBackend(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{otlp_port}")
            eventually(lambda: _answers(backend, process, Path(log.name)), "Phoenix answers", START_TIMEOUT_S)
            yield backend
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(backend: TraceBackend, process: "subprocess.Popen[bytes]", log: Path) -> bool:
    assert process.poll() is None, f"Phoenix ended with {process.returncode}\n{log.read_text()[-8000:]}"
    try:
        _get(f"{backend.url}/v1/projects")
    except OSError:
        return False
    return True


def _get(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=30) as response:
        answer: dict[str, Any] = json.load(response)
        return answer
