"""Gives each shard of `pagewire serve` its own GPU, as long as there are enough."""

from collections.abc import Mapping, Sequence
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"
NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")
"""The driver's folder, with one entry for each GPU. Asking CUDA would take seconds, and memory on every GPU."""


def visible_gpus(environment: Mapping[str, str], driver_folder: Path = NVIDIA_GPUS) -> tuple[str, ...]:
    """Returns the names of the GPUs that this process may use, in the form of CUDA_VISIBLE_DEVICES."""
    named = environment.get(VISIBLE)
    if named is not None:
        return tuple(name for word in named.split(",") if (name := word.strip()))
    return tuple(str(i) for i, _ in enumerate(driver_folder.iterdir())) if driver_folder.is_dir() else ()


def shard_environment(shard: int, gpus: Sequence[str]) -> dict[str, str]:
    """Returns the variable that shows a shard its GPU. Shards beyond the last GPU share GPUs, from the first on."""
    return {VISIBLE: gpus[shard % len(gpus)]} if len(gpus) > 1 else {}
