"""What the figures of a run are held to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Rows = Mapping[str, Mapping[str, Any]]
"""As Record.rows gives them."""


@dataclass(frozen=True, slots=True)
class Target:
    """A figure and its bound."""

    name: str
    bound: float
    at_least: bool
    """Else at most."""
    figure: Callable[[Rows], float | None]
    """None: what it is made of was not measured."""


def _column(part: str, column: str) -> Callable[[Rows], float | None]:
    return lambda rows: rows[part].get(column) if part in rows else None


def _worst_elementwise(rows: Rows) -> float | None:
    found = [row for name, row in rows.items() if name.startswith("kernels:elementwise") and "8192" in row["name"]]
    return min((row["of_roofline"] for row in found), default=None)


def _ratio(above: str, below: str) -> Callable[[Rows], float | None]:
    def figure(rows: Rows) -> float | None:
        if above not in rows or below not in rows:
            return None
        return float(rows[above]["output_tokens_per_s"] / rows[below]["output_tokens_per_s"])

    return figure


_WORKLOAD = "llama-8b:256x1k"
_SERVICE, _OFFLINE, _PEER = (f"{kind}:{_WORKLOAD}" for kind in ("service", "offline", "transformers"))
_ATTENTION, _ENGINE = "attention:{}".format, "engine:llama-8b:{}".format
TARGETS = (
    Target("decode, 64 x 8k, of copy rate", 0.8, True, _column(_ATTENTION("decode:8x128:64x8k"), "of_roofline")),
    Target("decode, 1 x 32k, of copy rate", 0.8, True, _column(_ATTENTION("decode:8x128:1x32k"), "of_roofline")),
    Target("prefill, 8k, of matmul rate", 0.65, True, _column(_ATTENTION("prefill:8x128:1x8k-of-8k"), "of_roofline")),
    Target("slowest small op, 8k tokens, of copy rate", 0.85, True, _worst_elementwise),
    Target("llama-8b, batch 1, token time over roofline", 1.15, False, _column(_ENGINE("1x1k"), "over_roofline")),
    Target("llama-8b, 256 x 1k, token time over roofline", 1.25, False, _column(_ENGINE("256x1k"), "over_roofline")),
    Target("service throughput over the engine's alone", 0.97, True, _ratio(_SERVICE, _OFFLINE)),
    Target("service throughput over transformers'", 3.0, True, _ratio(_SERVICE, _PEER)),
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
