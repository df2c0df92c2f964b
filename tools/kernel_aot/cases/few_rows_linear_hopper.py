"""Ahead-of-time cases of few_rows_linear's kernel of hopper.py: the tiles of the table, and what these do not use."""

from pagewire_kernels.few_rows_linear import hopper as kernels
from pagewire_kernels.tuning.few_rows_linear import HopperTile, few_rows_config

from kernel_aot.case import AotCase

PREFIX = "few_rows_linear/hopper"
HOPPER = 90


def _aot_case(
    name: str, shape: tuple[int, int], gated: bool, tile: HopperTile, dtype: str = "bf16", has_bias: bool = False
) -> AotCase:
    boxes = {"x_desc": tile.rows, "weight_desc": tile.block_n}
    layout = kernels._panel_layout()
    signature = {
        operand: f"tensordesc<{dtype}[{height}, {kernels.PANEL.value}],{layout!r}>" for operand, height in boxes.items()
    }
    # Launches without splits pass the output in the place of what only splits need.
    shared = {"partial_ptr": "*fp32", "counter_ptr": "*i32"} if tile.splits > 1 else {}
    signature |= dict.fromkeys(("bias_ptr", "out_ptr", "partial_ptr", "counter_ptr"), f"*{dtype}") | shared
    num_outputs = shape[0] // 2 if gated else shape[0]
    return AotCase(
        name,
        kernels.hopper_few_rows_kernel,
        signature | dict.fromkeys(("num_rows", "num_tiles_m"), "i32"),
        kernels._constants(num_outputs, shape[1], gated, has_bias, tile),
        num_warps=tile.num_warps,
        targets=(HOPPER,),
    )


def _of_the_table(name: str, shape: tuple[int, int], gated: bool) -> list[AotCase]:
    chosen = {rows: few_rows_config(HOPPER, 2, gated, rows, *shape).tile for rows in (2, 16, 32, 64, 128, 256)}
    return [
        _aot_case(f"{name}-{rows}rows", shape, gated, tile)
        for rows, tile in chosen.items()
        if isinstance(tile, HopperTile)
    ]


AOT_CASES = (
    *_of_the_table("qkv-llama-8b", (6144, 4096), False),
    *_of_the_table("o-llama-8b", (4096, 4096), False),
    *_of_the_table("gate-up-llama-8b", (28_672, 4096), True),
    *_of_the_table("down-llama-8b", (4096, 14_336), False),
    _aot_case("split-gated-bias-fp16", (2048, 1016), True, HopperTile(32, 64, 3, 4, 3, 2), "fp16", True),
    _aot_case("256rows", (4096, 4096), False, HopperTile(256, 128, 2, 8, 4, 1)),
)
