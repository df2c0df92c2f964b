"""Decode attention of rows that share prefixes: each shared run of blocks read once, beside each row by itself."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from pagewire_kernels import kv_cache
from pagewire_kernels.paged_attention import AttentionInputs, paged_attention
from pagewire_kernels.paged_attention.shared_prefixes import SharedPrefixes, make_plan
from pagewire_kernels.paged_attention.shared_runs import find_runs

from gpu_parts.paged import Heads
from gpu_parts.part import Bench, Part, Row
from gpu_parts.roofline import Call, row

LLAMA_8B, LLAMA_1B = Heads(32, 8, 128), Heads(32, 8, 64)
BLOCK_SIZE = 64


@dataclass(frozen=True, slots=True)
class Tree:
    """A batch whose rows share prefixes: prompts below prompts, and rows below the last of them."""

    levels: tuple[tuple[int, int], ...]
    """(prompts below each prompt of the level above, tokens that each adds)."""
    num_rows: int
    """Rows below each prompt of the last level."""
    num_own: int
    """Tokens of each row's own."""

    @property
    def name(self) -> str:
        levels = " x ".join(f"{count} of {tokens}" for count, tokens in self.levels)
        return f"{levels} x {self.num_rows} rows of {self.num_own} more"

    def tiny(self) -> "Tree":
        """The same tree with short prompts."""
        return Tree(tuple((min(count, 2), 2 * BLOCK_SIZE) for count, _ in self.levels), 3, 5)

    def block_tables(self) -> list[list[int]]:
        """The rows' blocks, numbered in order of use; full ones are shared."""
        tables: list[list[int]] = [[]]
        num_used = 0
        for count, tokens in (*self.levels, (self.num_rows, self.num_own)):
            num_blocks = -(-tokens // BLOCK_SIZE)
            below = []
            for table in tables:
                for _ in range(count):
                    below.append([*table, *range(num_used, num_used + num_blocks)])
                    num_used += num_blocks
            tables = below
        return tables

    @property
    def seq_len(self) -> int:
        return sum(tokens for _, tokens in self.levels) + self.num_own


def make(bench: Bench, heads: Heads, tree: Tree) -> AttentionInputs:
    """Random contents; the plan is what the runner would make."""
    device = bench.device
    rows = tree.block_tables()
    tables = torch.tensor(rows, dtype=torch.int32)
    num_blocks = int(tables.max()) + 1
    scattered = torch.randperm(num_blocks, dtype=torch.int32)[tables]
    caches = kv_cache.allocate(num_blocks, BLOCK_SIZE, heads.num_kv_heads, heads.head_dim, bench.dtype, device)
    for cache in caches:
        cache.normal_()
    query = torch.randn(len(rows), heads.num_heads, heads.head_dim, dtype=bench.dtype, device=device)
    return AttentionInputs(
        query,
        *caches,
        scattered.to(device),
        torch.arange(len(rows) + 1, dtype=torch.int32, device=device),
        torch.full((len(rows),), tree.seq_len, dtype=torch.int32, device=device),
        scale=float(heads.head_dim**-0.5),
        max_query_len=1,
        max_seq_len=tree.seq_len,
        num_decodes=len(rows),
        shared=plan(bench, heads, scattered, tree) if device.type == "cuda" else None,
    )


def plan(bench: Bench, heads: Heads, tables: torch.Tensor, tree: Tree) -> SharedPrefixes:
    """The plan of the rows, on the device."""
    from pagewire_kernels.paged_attention.triton_shared import plan_layout

    layout = plan_layout(
        bench.device,
        len(tables),
        num_kv_heads=heads.num_kv_heads,
        group_size=heads.num_heads // heads.num_kv_heads,
        head_dim=heads.head_dim,
        element_bytes=bench.dtype.itemsize,
        block_size=BLOCK_SIZE,
    )
    full = torch.full((len(tables),), (tree.seq_len - 1) // BLOCK_SIZE).numpy()
    runs = find_runs(tables.numpy(), range(len(tables)), full, BLOCK_SIZE, layout)
    values = torch.from_numpy(make_plan(layout, runs)).to(bench.device)
    return SharedPrefixes.of(layout, values, tables.to(bench.device))


def time_tree(heads: Heads, tree: Tree, bench: Bench) -> list[Row]:
    """Times one new token of each row; bytes count one read of every block, operations every row's products."""
    tree = tree.tiny() if bench.tiny else tree
    rows = tree.block_tables()
    key_bytes = 2 * heads.num_kv_heads * heads.head_dim * bench.dtype.itemsize
    num_unique = (max(map(max, rows)) + 1) * BLOCK_SIZE
    num_bytes = num_unique * key_bytes + 2 * len(rows) * heads.num_heads * heads.head_dim * bench.dtype.itemsize
    work = (num_bytes, 4 * heads.num_heads * heads.head_dim * len(rows) * tree.seq_len)
    ours = row(bench, f"shared, {tree.name}, {heads}", partial(_call, bench, heads, tree, True), *work)
    alone = row(bench, f"each row by itself, {tree.name}, {heads}", partial(_call, bench, heads, tree, False), *work)
    return [ours | {"speed_up": alone["median_us"] / ours["median_us"]}, alone]


def _call(bench: Bench, heads: Heads, tree: Tree, is_shared: bool) -> Call:
    inputs = make(bench, heads, tree)
    if not is_shared:
        inputs = replace(inputs, shared=None)
    return partial(paged_attention, inputs)


TREES = {
    "256x2k": Tree(((1, 2048),), 256, 128),
    "tree": Tree(((8, 1536), (4, 512)), 8, 64),
    "64x8k": Tree(((1, 8192),), 64, 128),
    "8x8k": Tree(((1, 8192),), 8, 128),
}
PARTS = (
    *(Part(f"attention:shared:8x128:{name}", partial(time_tree, LLAMA_8B, tree)) for name, tree in TREES.items()),
    Part("attention:shared:8x64:256x2k", partial(time_tree, LLAMA_1B, TREES["256x2k"])),
)
