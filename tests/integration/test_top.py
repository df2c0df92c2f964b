"""`pagewire top` over a router that serves and one that stands by."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cluster import eventually, free_port, read_metrics, shards_and_router, start_router
from pagewire import Client, SamplingParams


@pytest.mark.slow
def test_the_figures_of_two_routers(model: Path, tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    router_flags = ("--metrics-port", str(ports[0]))
    with shards_and_router(model, "--kv-cache-memory", "64MiB", router_flags=router_flags) as cluster:
        standby = start_router("standby", cluster.shard_addresses, tmp_path, "--metrics-port", str(ports[1]))
        try:
            eventually(lambda: _knows_the_shard(ports[1]), "the standby knows the shard")
            text = _top_under_load(cluster.address, ports)
        finally:
            standby.stop()
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    first, second = (lines[f"127.0.0.1:{port}"] for port in ports)
    assert " serving " in first
    assert "not ready" in second
    (group,) = [line for name, line in lines.items() if name == "0"]
    assert f"127.0.0.1:{ports[0]}" in group
    tokens_per_s = group.rpartition("━")[2].split()[0]  # Behind the gauge of the cache.
    assert float(tokens_per_s.removesuffix("k")) > 0


def _knows_the_shard(port: int) -> bool:
    try:
        return 'pagewire_group_serving{group="0"}' in read_metrics(port)
    except OSError:  # It does not listen yet.
        return False


def _top_under_load(address: str, ports: list[int]) -> str:
    """What the command prints while a request runs."""
    ended = threading.Event()

    def load() -> None:
        with Client(address) as client:
            while not ended.is_set():
                client.complete("Hello", SamplingParams(max_tokens=50, ignore_eos=True))

    thread = threading.Thread(target=load)
    thread.start()
    try:
        command = [sys.executable, "-m", "pagewire", "top", *(f"127.0.0.1:{port}" for port in ports), "--once"]
        environment = {**os.environ, "COLUMNS": "160"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    finally:
        ended.set()
        thread.join()
