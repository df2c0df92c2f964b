"""A real Prometheus on this machine, as tools/operate/prometheus.sh unpacks it."""

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from cluster import eventually, free_port
from operate_tools import OPERATE

BIN = OPERATE / "prometheus" / "usr" / "bin"
PROMETHEUS, PROMTOOL = BIN / "prometheus", BIN / "promtool"


class Prometheus:
    """Its HTTP API."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str | float) -> Any:
        """The data of an answer."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as response:
            answer = json.load(response)
        assert answer["status"] == "success", answer
        return answer["data"]

    def value(self, expr: str) -> float:
        """Returns the value of an expression that has one series now."""
        (series,) = self.get("query", query=expr)["result"]
        return float(series["value"][1])

    def targets(self) -> dict[str, str]:
        """The health of each target, by instance."""
        return {target["labels"]["instance"]: target["health"] for target in self.get("targets")["activeTargets"]}


@contextmanager
def prometheus(
    directory: Path, jobs: Mapping[str, Sequence[int]], rule_files: Sequence[Path] = ()
) -> Iterator[Prometheus]:
    """Scrapes ports of this machine, by job, every second. Yields when every target has been."""
    port = free_port()
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(path) for path in rule_files],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
            for job, ports in jobs.items()
        ],
    }
    file = directory / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    log = directory / "prometheus.log"
    command = [
        *(str(PROMETHEUS), f"--config.file={file}", f"--storage.tsdb.path={directory / 'data'}"),
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=directory)
    try:
        server = Prometheus(f"http://127.0.0.1:{port}")
        eventually(lambda: _is_scraping(server, process, log), f"every target scraped\n{log.read_text()}", 60)
        yield server
    finally:
        process.terminate()
        process.wait(30)


def _is_scraping(server: Prometheus, process: "subprocess.Popen[bytes]", log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        health = server.targets()
    except OSError:
        return False
    return bool(health) and all(state == "up" for state in health.values())
