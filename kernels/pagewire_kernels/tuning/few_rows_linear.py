"""Tile configurations of products of few rows: few_rows_linear.json, which a re-tuning run rewrites, as dataclasses.

An entry serves one GPU generation (compute capability times ten), elements of element_bytes, gated products or plain
ones, at most max_rows rows, and weights like the one it was measured with. There are no common entries: torch's own
product, which is always there, is what the kernels have to beat, and what serves if nothing was measured.
"""

import json
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from math import log2
from typing import Any

MAX_ROWS = 256
"""torch computes products of more rows."""
MAX_DISTANCE = 0.5
"""How far a weight may be from a measured one: powers of two of its height and of its width together. Half as many rows
already leave multiprocessors without work, which is not what was measured."""


@dataclass(frozen=True, slots=True)
class FewRowsTile:
    """How one program of the kernel in triton.py works, which takes up to 16 rows."""

    tensor_cores: bool
    """Whether tensor cores multiply; else the threads do, which serves one row."""
    block_n: int
    """Columns of the result, which are rows of the weight; a power of two."""
    block_k: int
    """Columns of the weight that are loaded at once; a power of two, at least 16."""
    num_warps: int
    num_stages: int
    """Loads in flight, the current one included; 1: loads go straight into registers."""
    early_release: bool
    """Whether the next kernel's programs may be placed as soon as this one's have waited for x, or only when these have
    read all."""


@dataclass(frozen=True, slots=True)
class HopperTile:
    """How one program of the kernel in hopper.py works, which takes any number of rows."""

    rows: int
    """Rows of x of one program; a power of two from 16 to 256."""
    block_n: int
    """Columns of the result, which are rows of the weight: 64 or 128."""
    splits: int
    """Programs that share the sums of a tile, each of some columns of the weight."""
    num_warps: int
    """4 or 8."""
    num_stages: int
    """Stages of a program's shared memory, each of which is filled and used as a whole."""
    panels: int
    """Panels of 64 columns of the weight in a stage."""


Tile = FewRowsTile | HopperTile


@dataclass(frozen=True, slots=True)
class FewRowsConfig:
    """The entry for one class of products."""

    tile: Tile | None
    """The tile of the kernel that takes it; None: use torch's product."""


TORCH = FewRowsConfig(None)


@cache
def few_rows_config(
    gpu: int, element_bytes: int, gated: bool, num_rows: int, weight_rows: int, weight_columns: int
) -> FewRowsConfig:
    """Returns the entry for the most similar weight, among those for the fewest sufficient rows."""
    fitting = [
        (distance, entry["max_rows"], entry["tile"])
        for entry in _entries()
        if entry["gpu"] == gpu
        and entry["element_bytes"] == element_bytes
        and entry["gated"] == gated
        and entry["max_rows"] >= num_rows
        and (distance := _distance(entry, weight_rows, weight_columns)) <= MAX_DISTANCE
    ]
    if not fitting:
        return TORCH
    _, _, tile = min(fitting, key=lambda choice: choice[:2])
    if tile is None:
        return TORCH
    kind: type[Tile] = HopperTile if "splits" in tile else FewRowsTile
    return FewRowsConfig(kind(**{field.name: tile[field.name] for field in fields(kind)}))


def _distance(entry: dict[str, Any], weight_rows: int, weight_columns: int) -> float:
    return abs(log2(entry["weight_rows"] / weight_rows)) + abs(log2(entry["weight_columns"] / weight_columns))


@cache
def _entries() -> list[dict[str, Any]]:
    text = files(__package__).joinpath("few_rows_linear.json").read_text(encoding="utf-8")
    entries: list[dict[str, Any]] = json.loads(text)
    return entries
