"""Tile configurations of the mixture of experts: fused_moe.json, which a re-tuning run rewrites, read into a dataclass.

An entry serves one GPU generation (compute capability times ten; 0: any that has no entry of its own), elements of
element_bytes, and batches in which an expert has at most max_rows tokens on average.
"""

import json
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """How one program of each grouped product works."""

    block_m: int
    """Rows, all of one expert, of one program of either product."""
    up_n: int
    """Columns of gate, and as many of up, of one program of the first product."""
    up_k: int
    """Columns of the hidden size that are loaded at once."""
    up_warps: int
    up_stages: int
    down_n: int
    """Columns of one program of the second product."""
    down_k: int
    """Columns of the intermediate size that are loaded at once."""
    down_warps: int
    down_stages: int


@cache
def moe_config(gpu: int, element_bytes: int, rows_per_expert: int) -> MoeConfig:
    """Returns the table's entry.

    Raises:
        ValueError: there is no entry for elements of this size.
    """
    fitting = [
        entry
        for entry in _entries()
        if entry["gpu"] in (gpu, 0) and entry["element_bytes"] == element_bytes and entry["max_rows"] >= rows_per_expert
    ]
    if not fitting:
        raise ValueError(f"fused_moe on GPUs does not take elements of {element_bytes} bytes")
    # The number of rows is compared first, because it matters more than the generation.
    entry = min(fitting, key=lambda entry: (entry["max_rows"], entry["gpu"] != gpu))
    return MoeConfig(**{field.name: entry[field.name] for field in fields(MoeConfig)})


@cache
def _entries() -> list[dict[str, Any]]:
    text = files(__package__).joinpath("fused_moe.json").read_text(encoding="utf-8")
    entries: list[dict[str, Any]] = json.loads(text)
    return entries
