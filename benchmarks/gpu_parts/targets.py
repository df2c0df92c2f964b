"""Targets for the figures of a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Rows = Mapping[str, Mapping[str, Any]]
"""The result of Record.rows."""


@dataclass(frozen=True, slots=True)
class Target:
    """A figure and its bound."""

    name: str
    bound: float
    at_least: bool
    """Whether the figure must be at least the bound; else at most."""
    figure: Callable[[Rows], float | None]
    """The figure; None if a part that it needs was not measured."""


def _column(part: str, column: str) -> Callable[[Rows], float | None]:
    return lambda rows: rows[part].get(column) if part in rows else None


def _worst_elementwise(column: str) -> Callable[[Rows], float | None]:
    def figure(rows: Rows) -> float | None:
        found = [row for name, row in rows.items() if name.startswith("kernels:elementwise") and "8192" in row["name"]]
        return min((row[column] for row in found), default=None)

    return figure


def _ratio(above: str, below: str) -> Callable[[Rows], float | None]:
    def figure(rows: Rows) -> float | None:
        if above not in rows or below not in rows:
            return None
        return float(rows[above]["output_tokens_per_s"] / rows[below]["output_tokens_per_s"])

    return figure


_SERVICE, _OFFLINE = "service:llama-8b:256x1k", "offline:llama-8b:256x1k"
_FEWER, _PEER = "offline:llama-8b:64x1k", "transformers:llama-8b:64x1k"
"""Without a flash-attention package transformers masks one dense product of all tokens with all keys: 256 sequences of
1k tokens take it minutes."""
_ATTENTION, _ENGINE = "attention:{}".format, "engine:llama-8b:{}".format
TARGETS = (
    Target("decode, 64 x 8k, of copy rate", 0.8, True, _column(_ATTENTION("decode:8x128:64x8k"), "of_roofline")),
    Target("decode, 1 x 32k, of copy rate", 0.8, True, _column(_ATTENTION("decode:8x128:1x32k"), "of_roofline")),
    Target("prefill, 8k, of matmul rate", 0.65, True, _column(_ATTENTION("prefill:8x128:1x8k-of-8k"), "of_roofline")),
    Target("slowest small op, 8k tokens, of a 4 GiB copy's rate", 0.85, True, _worst_elementwise("of_roofline")),
    Target("the same, of a copy of as many bytes", 0.85, True, _worst_elementwise("of_copy")),
    Target("llama-8b, batch 1, token time over roofline", 1.15, False, _column(_ENGINE("1x1k"), "over_roofline")),
    Target("llama-8b, 256 x 1k, token time over roofline", 1.25, False, _column(_ENGINE("256x1k"), "over_roofline")),
    Target("service throughput over the engine's alone", 0.97, True, _ratio(_SERVICE, _OFFLINE)),
    Target("throughput over transformers', 64 x 1k", 3.0, True, _ratio(_FEWER, _PEER)),
    Target("llama-8b, capture of all graphs, s", 12.0, False, _column("start:llama-8b", "capture_s")),
)


def verdicts(rows: Rows) -> list[dict[str, Any]]:
    """One row for each target whose figure was measured."""
    found = [(target, target.figure(rows)) for target in TARGETS]
    return [
        {
            "name": target.name,
            "bound": ("at least " if target.at_least else "at most ") + f"{target.bound:g}",
            "figure": figure,
            "met": figure >= target.bound if target.at_least else figure <= target.bound,
        }
        for target, figure in found
        if figure is not None
    ]
