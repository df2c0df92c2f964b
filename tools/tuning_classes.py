"""What tools/tune_kernels.py tunes: each op's classes, the loads that stand for them, and the values to try.

One entry of a table in kernels/pagewire_kernels/tuning serves one class.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from layer_chain import LAYERS, NUM_LAYERS, LayerChain, LayerShape

if TYPE_CHECKING:
    from pagewire_kernels.paged_attention import AttentionInputs
    from pagewire_kernels.tuning.few_rows_linear import HopperTile

DEVICE = torch.device("cuda")
BLOCK_SIZE = 64
K = 1024
HOPPER = 90
NUM_MULTIPROCESSORS = 132
STAGE_BYTES = 225_000
"""Shared memory of a multiprocessor of Hopper for stages."""
CHAIN_ROWS = (16, 32, 64, 128, 256)
"""Numbers of rows that products are timed with in layers."""
ROTATED_BYTES = 512 << 20
"""Bytes of weights or KV caches that a run cycles through: more than the GPU's cache keeps until their next use."""
MAX_ROTATED = 64

Config = Any
"""A frozen dataclass of pagewire_kernels.tuning."""
Run = Callable[[Config], torch.Tensor]
"""Runs the kernel with a configuration and returns what it computed."""


@dataclass(frozen=True, slots=True)
class Load:
    """One size to run."""

    name: str
    make: Callable[[], Run]
    """Allocates the inputs."""
    num_bytes: float
    """Bytes that a call must move; 0: the call is judged by its operations."""
    num_flops: float
    num_calls: int = 1
    """Calls of a run; each has its own inputs."""


@dataclass(frozen=True, slots=True)
class TuningClass:
    """One entry to choose."""

    table: str
    """The file, without .json."""
    key: Mapping[str, int | str]
    """The fields that say what the entry serves; its gpu is the one at hand."""
    start: Config
    """The configuration to start from: the table's current entry."""
    choices: Mapping[str, Sequence[object]]
    """Field of the configuration -> values to try."""
    loads: Sequence[Load]

    @property
    def name(self) -> str:
        return "-".join([self.table, *(f"{key}={value}" for key, value in self.key.items() if key != "gpu")])


def all_classes(gpu: int) -> Iterator[TuningClass]:
    """Every class, for a GPU generation. Allocates nothing."""
    yield from _attention_classes(gpu)
    yield from _moe_classes(gpu)
    yield from _few_rows_classes(gpu)


PREFILLS = ((1, 8 * K, 8 * K), (8, K, K), (1, 2 * K, 16 * K))
"""(sequences, new tokens of each, tokens of each)."""


def _attention_classes(gpu: int) -> Iterator[TuningClass]:
    from pagewire_kernels.tuning.paged_attention import decode_config, hopper_prefill_config, prefill_config

    for head_dim in (64, 128):
        key = {"gpu": gpu, "max_head_dim": head_dim, "element_bytes": 2}
        yield TuningClass(
            "paged_attention",
            {"query": "decode", **key},
            decode_config(gpu, head_dim, 2),
            {
                "tile": (32, 64, 128),
                "num_warps": (2, 4, 8),
                "num_stages": (2, 3, 4, 5),
                "programs_per_sm": (1, 2, 3, 4),
                "min_split_tiles": (1, 2, 4, 8),
            },
            [_decode(head_dim, n, k * K) for n, k in ((1, 1), (1, 32), (16, 8), (64, 8), (256, 1))],
        )
        yield TuningClass(
            "paged_attention",
            {"query": "prefill", **key},
            prefill_config(gpu, head_dim, 2),
            {
                "block_m": (64, 128),
                "tile": (32, 64, 128),
                "num_warps": (4, 8),
                "num_stages": (2, 3, 4),
                "late_values": (False, True),
            },
            [_prefill(head_dim, *load) for load in PREFILLS],
        )
        hopper = hopper_prefill_config(gpu, head_dim, 2)
        if hopper is not None and _has_gluon():
            yield TuningClass(
                "paged_attention",
                {"query": "hopper_prefill", **key},
                hopper,
                {"tile": (64, 128), "num_stages": (2, 3, 4)},
                [_prefill(head_dim, *load, kernel="hopper_prefill") for load in PREFILLS],
            )


def _has_gluon() -> bool:
    """Whether the installed Triton has Gluon as the kernel for Hopper needs it."""
    try:
        import_module("pagewire_kernels.paged_attention.hopper_prefill")
    except (ImportError, AttributeError):
        return False
    return True


def _decode(head_dim: int, num_seqs: int, seq_len: int) -> Load:
    """Calls with different caches of one size, captured as a graph: launches cost what they do in a decode step."""
    num_bytes = 2 * 2 * num_seqs * seq_len * 8 * head_dim
    num_calls = _num_rotated(num_bytes)

    def make() -> Run:
        from pagewire_kernels.paged_attention.triton_decode import attend_decodes

        batches = [_attention(head_dim, num_seqs, 1, seq_len) for _ in range(num_calls)]
        out = torch.empty_like(batches[0].query)

        def attend(config: Config) -> torch.Tensor:
            for inputs in batches:
                attend_decodes(inputs, out, num_seqs, config)
            return out

        return _in_graphs(attend)

    return Load(f"{num_seqs} x {seq_len}", make, num_bytes, 0.0, num_calls)


def _prefill(head_dim: int, num_seqs: int, query_len: int, seq_len: int, kernel: str = "triton_prefill") -> Load:
    """One prefill by the kernel of a module of paged_attention."""
    num_products = query_len * seq_len - query_len * (query_len - 1) // 2
    num_flops = 4.0 * 32 * head_dim * num_seqs * num_products

    def make() -> Run:
        attend_prefills = import_module(f"pagewire_kernels.paged_attention.{kernel}").attend_prefills
        inputs = _attention(head_dim, num_seqs, query_len, seq_len)
        out = torch.empty_like(inputs.query)

        def attend(config: Config) -> torch.Tensor:
            attend_prefills(inputs, out, 0, config)
            return out

        return attend

    return Load(f"{num_seqs} x {query_len} of {seq_len}", make, 0.0, num_flops)


def _attention(head_dim: int, num_seqs: int, query_len: int, seq_len: int) -> "AttentionInputs":
    """32 query heads and 8 key heads, blocks scattered over the pool."""
    from pagewire_kernels.paged_attention import AttentionInputs

    num_blocks = -(-seq_len // BLOCK_SIZE)
    shape = (num_seqs * num_blocks, BLOCK_SIZE, 8, head_dim)
    keys, values = (torch.randn(shape, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    query = torch.randn(num_seqs * query_len, 32, head_dim, dtype=torch.bfloat16, device=DEVICE)
    tables = torch.randperm(num_seqs * num_blocks, device=DEVICE).to(torch.int32).view(num_seqs, num_blocks)
    starts = torch.arange(num_seqs + 1, dtype=torch.int32, device=DEVICE) * query_len
    lens = torch.full((num_seqs,), seq_len, dtype=torch.int32, device=DEVICE)
    return AttentionInputs(query, keys, values, tables, starts, lens, head_dim**-0.5, query_len, seq_len)


def _moe_classes(gpu: int) -> Iterator[TuningClass]:
    from pagewire_kernels.tuning.fused_moe import moe_config

    classes = (
        (16, {"block_m": (16,)}, (1, 16, 64)),
        (48, {"block_m": (16, 32, 64)}, (512,)),
        (1_000_000_000, {"block_m": (64, 128)}, (2048, 8192)),
    )
    for max_rows, rows, num_tokens in classes:
        yield TuningClass(
            "fused_moe",
            {"gpu": gpu, "element_bytes": 2, "max_rows": max_rows},
            moe_config(gpu, 2, max_rows),
            {
                **rows,
                "up_n": (32, 64, 128),
                "up_k": (32, 64, 128),
                "up_warps": (4, 8),
                "up_stages": (2, 3, 4, 5),
                "down_n": (32, 64, 128, 256),
                "down_k": (32, 64, 128),
                "down_warps": (4, 8),
                "down_stages": (2, 3, 4, 5),
            },
            [_experts(num) for num in num_tokens],
        )


def _experts(num_tokens: int) -> Load:
    """Qwen3-30B-A3B's experts."""
    num_experts, top_k, hidden, size = 128, 8, 2048, 768
    num_hit = num_experts * (1 - (1 - top_k / num_experts) ** num_tokens)
    num_flops = 6.0 * num_tokens * top_k * size * hidden if num_tokens >= 1024 else 0.0
    num_bytes = 0.0 if num_flops else 2.0 * 3 * num_hit * size * hidden

    def make() -> Run:
        from pagewire_kernels.fused_moe import RouterSpec
        from pagewire_kernels.fused_moe.triton import fused_moe

        x = torch.randn(num_tokens, hidden, dtype=torch.bfloat16, device=DEVICE)
        logits = torch.randn(num_tokens, num_experts, dtype=torch.bfloat16, device=DEVICE)
        gate_up = torch.randn(num_experts, 2 * size, hidden, dtype=torch.bfloat16, device=DEVICE) * hidden**-0.5
        down = torch.randn(num_experts, hidden, size, dtype=torch.bfloat16, device=DEVICE) * size**-0.5
        return lambda config: fused_moe(x, logits, gate_up, down, RouterSpec(top_k, renormalise=True), config=config)

    return Load(f"{num_tokens} tokens", make, num_bytes, num_flops)


FEW_ROWS_WEIGHTS = (
    # Llama-3.1-8B's qkv, o, gate and up, down, output projection.
    (6144, 4096, False),
    (4096, 4096, False),
    (28_672, 4096, True),
    (4096, 14_336, False),
    (128_256, 4096, False),
    # Llama-3.2-1B's.
    (3072, 2048, False),
    (2048, 2048, False),
    (16_384, 2048, True),
    (2048, 8192, False),
    (128_256, 2048, False),
    # Qwen3-30B-A3B's qkv, o and router.
    (5120, 2048, False),
    (2048, 4096, False),
    (128, 2048, False),
)
"""(rows, columns, gated)."""
# (block_n, block_k, num_warps, num_stages). With one stage, a tile is loaded into registers before x is there; the
# widest tiles hold whole rows. With more stages, a stage has 4 to 16 KB.
THREAD_TILES = (
    (2, 4096, 4, 1),
    (4, 4096, 8, 1),
    (1, 4096, 2, 1),
    (2, 2048, 2, 1),
    (2, 2048, 4, 1),
    (4, 2048, 4, 1),
    (4, 2048, 8, 1),
    (1, 2048, 1, 1),
    (1, 8192, 4, 1),
    (2, 8192, 8, 1),
    (1, 16_384, 4, 1),
    (4, 1024, 4, 1),
    (8, 512, 4, 1),
    (4, 512, 2, 4),
    (8, 512, 4, 3),
    (8, 512, 4, 5),
    (16, 256, 4, 6),
)


def _few_rows_classes(gpu: int) -> Iterator[TuningClass]:
    """Torch is where each begins: what the table gives a tile has beaten it."""
    from pagewire_kernels.tuning.few_rows_linear import TORCH, FewRowsTile

    tiles = [FewRowsTile(False, *tile, early) for tile in THREAD_TILES for early in (False, True)]
    for height, width, gated in FEW_ROWS_WEIGHTS:
        yield _few_rows_class(gpu, (height, width), gated, 1, [TORCH.tile, *tiles], _one_row(height, width, gated))
    if gpu != HOPPER:
        return
    for shape in LAYERS:
        for name, (height, width) in shape.weights.items():
            gated = name == "gate_up"
            for num_rows in CHAIN_ROWS:
                load = _in_layers(shape, name, num_rows)
                choices = [TORCH.tile, *hopper_tiles(num_rows, height, gated)]
                yield _few_rows_class(gpu, (height, width), gated, num_rows, choices, load)


def _few_rows_class(
    gpu: int, weight: tuple[int, int], gated: bool, max_rows: int, tiles: Sequence[object], load: Load
) -> TuningClass:
    from pagewire_kernels.tuning.few_rows_linear import TORCH

    key = {"gated": gated, "max_rows": max_rows, "weight_rows": weight[0], "weight_columns": weight[1]}
    return TuningClass(
        "few_rows_linear", {"gpu": gpu, "element_bytes": 2, **key}, TORCH, {"tile": tuple(tiles)}, [load]
    )


def hopper_tiles(num_rows: int, height: int, gated: bool) -> list["HopperTile"]:
    """Tiles for so many rows: one program for each multiprocessor, most of whose shared memory it takes."""
    from pagewire_kernels.tuning.few_rows_linear import HopperTile

    tiles = []
    num_parts = 2 if gated else 1
    padded = max(16, 1 << (num_rows - 1).bit_length())
    for rows in {min(padded, 128), padded}:
        for block_n, num_warps in ((64, 4), (64, 8), (128, 8)):
            num_tiles = -(-num_rows // rows) * -(-(height // num_parts) // block_n)
            for splits in (1, 2, 3, 4):
                # All programs are to be resident at once, or enough of them for several rounds.
                fits = 64 <= num_tiles * splits <= NUM_MULTIPROCESSORS or (splits == 1 and num_tiles > 64)
                for panels in (1, 2, 4):
                    stage_bytes = (num_parts * block_n + rows) * 128 * panels
                    num_stages = min(16 // panels, STAGE_BYTES // stage_bytes)
                    sums = rows * block_n * num_parts // (32 * num_warps)
                    if fits and num_stages >= 2 and sums <= 128:
                        tiles.append(HopperTile(rows, block_n, splits, num_warps, num_stages, panels))
    return tiles


def _one_row(height: int, width: int, gated: bool) -> Load:
    """Products with different weights of one size, captured as a graph: launches cost what they do in a decode step."""
    num_bytes = 2 * height * width
    num_weights = _num_rotated(num_bytes)

    def make() -> Run:
        x = torch.randn(1, width, dtype=torch.bfloat16, device=DEVICE)
        weights = torch.randn(num_weights, height, width, dtype=torch.bfloat16, device=DEVICE) * width**-0.5
        return _in_graphs(lambda config: [_product(x, weight, gated, config) for weight in weights][-1])

    return Load(f"1 row of {height} x {width}", make, num_bytes, 0.0, num_weights)


def _in_layers(shape: LayerShape, name: str, num_rows: int) -> Load:
    """Layers in which one of the products is computed as a configuration says, and the others by torch."""
    height, width = shape.weights[name]

    def make() -> Run:
        chain = LayerChain(shape, num_rows)

        def run(config: Config) -> torch.Tensor:
            configs = {each: config if each == name else TORCH for each in shape.weights}
            return chain.run({each: partial(_product_in_layer, each == "gate_up", configs[each]) for each in configs})

        return _in_graphs(run)

    from pagewire_kernels.tuning.few_rows_linear import TORCH

    return Load(f"{num_rows} rows of {height} x {width} in a layer of {shape.name}", make, 0.0, 0.0, NUM_LAYERS)


def _product_in_layer(gated: bool, config: Config, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return _product(x, weight, gated, config)


def _product(x: torch.Tensor, weight: torch.Tensor, gated: bool, config: Config) -> torch.Tensor:
    from pagewire_kernels.activation import silu_and_mul
    from pagewire_kernels.few_rows_linear import few_rows_linear

    if config.tile is not None:
        return few_rows_linear(x, weight, gated=gated, tile=config.tile)
    y = torch.nn.functional.linear(x, weight)
    return silu_and_mul(y) if gated else y


def _num_rotated(num_bytes: int) -> int:
    """Calls that go through ROTATED_BYTES together."""
    return min(MAX_ROTATED, -(-ROTATED_BYTES // num_bytes))


def _in_graphs(work: Run) -> Run:
    """Replays the work, which is captured the first time a configuration comes."""
    graphs: dict[Config, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}

    def run(config: Config) -> torch.Tensor:
        if config not in graphs:
            # The first call compiles, which must not happen in a capture.
            work(config)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = work(config)
            graphs[config] = (graph, out)
        graph, out = graphs[config]
        graph.replay()
        return out

    return run
