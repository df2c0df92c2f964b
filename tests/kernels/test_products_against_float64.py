"""Products of few rows and mixtures of experts against float64, on a CPU and on a GPU, at served shapes there."""

import float64
import pytest
from kernel_site import Site
from pagewire_kernels.few_rows_linear import few_rows_linear, tiles_by_rows
from pagewire_kernels.fused_moe import RouterSpec, fused_moe, reference

LLAMA_8B = {
    "qkv": (6144, 4096, False),
    "o": (4096, 4096, False),
    "gate_up": (28_672, 4096, True),
    "down": (4096, 14_336, False),
    "lm_head": (128_256, 4096, False),
}
"""Rows, columns, and whether the first half of the rows is a gate."""
ODD = {"odd gated": (4098, 4090, True), "odd": (1001, 333, False)}


@pytest.mark.parametrize("name", [*LLAMA_8B, *ODD])
def test_few_rows_linear(site: Site, name: str) -> None:
    """By the tile of the table, where it has one, and by the one that is not measured, which takes up to 16 rows."""
    height, width, gated = (LLAMA_8B | ODD)[name]
    if name in LLAMA_8B:
        height, width = site.size(height, height // 128), site.size(width, width // 128)
    weight, bias = site.random(height, width) * width**-0.5, site.random(height)
    table = tiles_by_rows(weight, gated=gated)
    for num_rows in (1, 2, 4, 9, 16, *((33, 64, 200) if table else ())):
        x = site.random(num_rows, width)
        expected = float64.linear(x, weight, bias, gated)
        tiles = ({"default": None} if num_rows <= 16 else {}) | (
            {"table": table[num_rows]} if table and table[num_rows] is not None else {}
        )
        for which, tile in tiles.items():
            out = few_rows_linear(x, weight, bias, gated=gated, tile=tile)
            site.check(out, expected, f"{num_rows} rows, {which} tile")


@pytest.mark.parametrize("num_tokens", [1, 7, 64, 1000])
@pytest.mark.parametrize(
    ("num_experts", "top_k", "hidden", "size"), [(8, 2, 1024, 3584), (128, 8, 2048, 768)], ids=["mixtral", "qwen3"]
)
def test_fused_moe(site: Site, num_experts: int, top_k: int, hidden: int, size: int, num_tokens: int) -> None:
    num_experts, hidden, size = site.size(num_experts, 4 * top_k), site.size(hidden, 64), site.size(size, 48)
    num_tokens = site.size(num_tokens, min(num_tokens, 33))
    gate_up = site.random(num_experts, 2 * size, hidden) * hidden**-0.5
    down = site.random(num_experts, hidden, size) * size**-0.5
    x, logits = site.random(num_tokens, hidden), site.random(num_tokens, num_experts)
    router = RouterSpec(top_k, renormalise=True)
    out = fused_moe(x, logits, gate_up, down, router)
    # Logits of 16 bits have equals: the definition says which of them are chosen.
    weights, experts = reference.route(logits, router)
    site.check(out, float64.mixture(x, gate_up, down, weights, experts))
