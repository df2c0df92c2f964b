"""The kernels of a decode step's layers, one after the other, in which a product is timed as it is served.

A product timed alone among others of its kind finds a device that it has to itself. In a layer it begins while a small
kernel before it runs, its end is waited for by another, and torch's products begin when all before has ended.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

CONTEXT = 1024
"""Tokens of each sequence."""
BLOCK_SIZE = 64
NUM_WEIGHTS = 3
"""Layers with weights of their own, so that none are in the cache when their turn comes again."""
NUM_LAYERS = 9

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(x, weight) -> x @ weight.T, for gate and up silu(gate) * up."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """A dense layer of Llama's kind."""

    name: str
    hidden: int
    size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def weights(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of each weight; gate_up is gated."""
        query_size = self.num_heads * self.head_dim
        return {
            "qkv": (query_size + 2 * self.num_kv_heads * self.head_dim, self.hidden),
            "o": (self.hidden, query_size),
            "gate_up": (2 * self.size, self.hidden),
            "down": (self.hidden, self.size),
        }


LAYERS = (
    LayerShape("llama-8b", 4096, 14_336, 32, 8, 128),
    LayerShape("llama-1b", 2048, 8192, 32, 8, 64),
)


class LayerChain:
    """Layers of one token for each of num_rows sequences. Allocates everything at once."""

    def __init__(self, shape: LayerShape, num_rows: int) -> None:
        from pagewire_kernels import kv_cache

        device = torch.device("cuda")
        ones = torch.ones(1, dtype=torch.bfloat16, device=device)
        num_blocks = CONTEXT // BLOCK_SIZE
        self._shape = shape
        self._weights = {
            name: [ones.new_empty(height, width).normal_(std=width**-0.5) for _ in range(NUM_WEIGHTS)]
            for name, (height, width) in shape.weights.items()
        }
        self._norm = ones.repeat(shape.hidden)
        self._x = ones.new_empty(num_rows, shape.hidden).normal_()
        # One cache serves all layers: the weights of a layer flush it.
        self._caches = kv_cache.allocate(
            num_rows * num_blocks, BLOCK_SIZE, shape.num_kv_heads, shape.head_dim, torch.bfloat16, device
        )
        for cache in self._caches:
            cache.normal_()
        self._tables = torch.randperm(num_rows * num_blocks, device="cuda").to(torch.int32).view(num_rows, num_blocks)
        self._starts = torch.arange(num_rows + 1, dtype=torch.int32, device="cuda")
        self._lens = torch.full((num_rows,), CONTEXT, dtype=torch.int32, device="cuda")
        self._positions = torch.full((num_rows,), CONTEXT - 1, device="cuda")
        self._slots = self._tables[:, -1].long() * BLOCK_SIZE + BLOCK_SIZE - 1
        angles = torch.randn(CONTEXT, shape.head_dim // 2, device="cuda")
        self._cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)

    def run(self, products: Mapping[str, Product]) -> torch.Tensor:
        """Runs NUM_LAYERS layers with a product for each weight and returns the last one's output.

        Each begins with the same rows, so that differences in rounding do not add up.
        """
        for index in range(NUM_LAYERS):
            out = self._layer(index % NUM_WEIGHTS, products)
        return out

    def _layer(self, index: int, products: Mapping[str, Product]) -> torch.Tensor:
        from pagewire_kernels.paged_attention import AttentionInputs, paged_attention
        from pagewire_kernels.rms_norm import rms_norm
        from pagewire_kernels.rotary_and_cache import RotaryInputs, rotary_and_cache

        def product(name: str, x: torch.Tensor) -> torch.Tensor:
            return products[name](x, self._weights[name][index])

        num_rows, shape = len(self._x), self._shape
        x, residual = rms_norm(self._x, self._norm, 1e-5, self._x)
        heads = product("qkv", x).view(num_rows, -1, shape.head_dim)
        query, key, value = heads.split_with_sizes([shape.num_heads, shape.num_kv_heads, shape.num_kv_heads], 1)
        rotary_and_cache(RotaryInputs(query, key, value, self._positions, self._cos_sin, *self._caches, self._slots))
        attended = paged_attention(
            AttentionInputs(
                query,
                *self._caches,
                self._tables,
                self._starts,
                self._lens,
                scale=shape.head_dim**-0.5,
                max_query_len=1,
                max_seq_len=8 * CONTEXT,
                num_decodes=num_rows,
            )
        )
        x, _ = rms_norm(product("o", attended.view(num_rows, -1)), self._norm, 1e-5, residual)
        return product("down", product("gate_up", x))
