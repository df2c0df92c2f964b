"""How `pagewire serve` shares GPUs out among its shards."""

import asyncio
import sys
from pathlib import Path

import pytest
from pagewire.cli import serve
from pagewire.serve.child import Child
from pagewire.serve.config import ServeConfig
from pagewire.serve.gpus import shard_environment, visible_gpus
from pagewire.serve.supervisor import Supervisor


def test_gpus_are_those_of_the_environment_or_else_all_of_the_driver(tmp_path: Path) -> None:
    for name in ("0000:17:00.0", "0000:65:00.0", "0000:ca:00.0"):
        (tmp_path / name).mkdir()
    assert visible_gpus({}, tmp_path) == ("0", "1", "2")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3, GPU-5a"}, tmp_path) == ("3", "GPU-5a")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == ()
    assert visible_gpus({}, tmp_path / "no driver") == ()


def test_each_shard_sees_a_gpu_of_its_own_until_there_are_none_left() -> None:
    seen = [shard_environment(shard, ("0", "2")) for shard in range(3)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in seen] == ["0", "2", "0"]
    assert shard_environment(1, ("0",)) == shard_environment(1, ()) == {}


def test_a_cpu_server_leaves_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import argparse

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    assert serve.config_from(parser.parse_args([])).gpus == ("4", "5")
    assert serve.config_from(parser.parse_args(["--device", "cpu"])).gpus == ()


async def test_shards_are_started_with_theirs_and_the_router_with_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    says = "import os; print('says ready on', os.environ.get('CUDA_VISIBLE_DEVICES', 'all'), flush=True)"
    says += "; __import__('sys').stdin.read()"
    command = [sys.executable, "-c", says]
    supervisor = Supervisor(
        ServeConfig(replicas=3, gpus=("6", "7")),
        shard_command=lambda *_: command,
        router_command=lambda *_: command,
    )
    supervisor._assign(Path("/nowhere"))
    children: list[Child] = await asyncio.gather(*(role.start() for role in supervisor._roles()))
    try:
        seen = await asyncio.wait_for(asyncio.gather(*(child.address for child in children)), 60)
    finally:
        await asyncio.gather(*(child.stop(5) for child in children))
    assert seen == ["6", "7", "6", "all"]
