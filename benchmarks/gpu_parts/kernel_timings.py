"""Every kernel but attention against its roofline: the fused small ops at 8,192 tokens, sampling, experts, copies.

Bytes are those that must move: every input is read once, every output written once.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from pagewire_kernels import kv_cache
from pagewire_kernels.activation import silu_and_mul
from pagewire_kernels.copy_blocks import copy_blocks
from pagewire_kernels.fused_moe import fused_moe
from pagewire_kernels.layer_norm import layer_norm
from pagewire_kernels.rms_norm import rms_norm
from pagewire_kernels.rotary_and_cache import rotary_and_cache
from pagewire_kernels.sample import gather_logprobs, sample

from gpu_parts.paged import Heads
from gpu_parts.part import Bench, Part, Row
from gpu_parts.roofline import row
from gpu_parts.sampling_inputs import sampling_batch

BLOCK_SIZE = 64
HIDDEN, INTERMEDIATE = 4096, 14_336
"""Of Llama-3.1-8B."""


def elementwise(bench: Bench) -> Iterator[Row]:
    """The fused small ops of a layer of Llama-3.1-8B, at a prefill's and at a decode batch's tokens."""
    for num_tokens in (bench.size(8192, 64), bench.size(256, 8)):
        hidden, size = bench.size(HIDDEN, 64), bench.size(INTERMEDIATE, 128)
        x, residual = (_random(bench, num_tokens, hidden) for _ in range(2))
        weight, bias = (_random(bench, hidden) for _ in range(2))
        gate_up = _random(bench, num_tokens, 2 * size)
        name = f"{num_tokens} tokens"
        yield row(bench, f"rms_norm, {name}", partial(rms_norm, x, weight, 1e-5), 2 * x.nbytes)
        yield row(
            bench,
            f"rms_norm with residual, {name}",
            partial(rms_norm, x, weight, 1e-5, residual),
            4 * x.nbytes,
        )
        yield row(bench, f"layer_norm, {name}", partial(layer_norm, x, weight, bias, 1e-5), 2 * x.nbytes)
        yield row(bench, f"silu_and_mul, {name}", partial(silu_and_mul, gate_up), 1.5 * gate_up.nbytes)
        yield rotary(bench, num_tokens)


def rotary(bench: Bench, num_tokens: int) -> Row:
    """Rotation and cache write: queries and keys change in place, keys and values also go to the cache."""
    heads = Heads(4, 2, 32) if bench.tiny else Heads(32, 8, 128)
    projected = _random(bench, num_tokens, heads.num_heads + 2 * heads.num_kv_heads, heads.head_dim)
    query, key, value = projected.split_with_sizes([heads.num_heads, heads.num_kv_heads, heads.num_kv_heads], 1)
    num_blocks = -(-num_tokens // BLOCK_SIZE)
    caches = kv_cache.allocate(num_blocks, BLOCK_SIZE, heads.num_kv_heads, heads.head_dim, bench.dtype, bench.device)
    positions = torch.arange(num_tokens, device=bench.device)
    cos_sin = torch.randn(num_tokens, heads.head_dim, device=bench.device)
    slots = torch.randperm(num_blocks * BLOCK_SIZE, device=bench.device)[:num_tokens]
    element = query.element_size()
    # The rotated key need not be written back: the cache has it.
    num_elements = num_tokens * heads.head_dim * (2 * heads.num_heads + 4 * heads.num_kv_heads)
    num_bytes = num_elements * element + cos_sin.nbytes + 2 * positions.nbytes
    return row(
        bench,
        f"rotary_and_cache, {num_tokens} tokens",
        lambda: rotary_and_cache(query, key, value, positions, cos_sin, *caches, slots),
        num_bytes,
    )


def sampling(bench: Bench) -> Iterator[Row]:
    """256 rows of 128,256 logits; the bytes are one pass over them."""
    num_rows, vocab_size = bench.size(256, 8), bench.size(128_256, 1000)
    logits = torch.randn(num_rows, vocab_size, device=bench.device) * 3
    scratch = logits.clone()
    for name, options in (
        ("greedy", {"temperature": 0.0}),
        ("temperature", {}),
        ("top_k 50", {"top_k": 50}),
        ("top_p 0.9", {"top_p": 0.9}),
        ("min_p 0.05", {"min_p": 0.05}),
        ("penalties", {"presence": 0.5, "repetition": 1.1}),
    ):
        params = sampling_batch(bench.device, num_rows, vocab_size, **options)
        # Sampling may change the logits: every call gets them fresh.
        yield row(
            bench,
            f"sample, {num_rows} x {vocab_size}, {name}",
            partial(sample, scratch, params),
            logits.nbytes,
            prepare=partial(scratch.copy_, logits),
        )
    chosen = logits.argmax(-1)
    name = f"gather_logprobs, {num_rows} x {vocab_size}, top 5"
    yield row(bench, name, lambda: gather_logprobs(logits, chosen, 5), logits.nbytes)


def experts(bench: Bench) -> Iterator[Row]:
    """The experts of Qwen3-30B-A3B and Mixtral-8x7B: weights of the experts that are hit, and the operations done."""
    for name, num_experts, top_k, hidden, size in (
        ("qwen3-30b-a3b", 128, 8, 2048, 768),
        ("mixtral-8x7b", 8, 2, 4096, 14_336),
    ):
        num_experts, hidden, size = bench.size(num_experts, 4 * top_k), bench.size(hidden, 64), bench.size(size, 48)
        gate_up, down = _random(bench, num_experts, 2 * size, hidden), _random(bench, num_experts, hidden, size)
        for num_tokens in (1, 16, 64, bench.size(256, 32), bench.size(8192, 64)):
            x, logits = _random(bench, num_tokens, hidden), _random(bench, num_tokens, num_experts)
            num_hit = int(torch.unique(logits.topk(top_k).indices).numel())
            num_bytes = num_hit * 3 * size * hidden * x.element_size() + 2 * x.nbytes
            num_flops = 6 * num_tokens * top_k * size * hidden
            call = partial(fused_moe, x, logits, gate_up, down, top_k=top_k, renormalise=True)
            yield row(bench, f"fused_moe, {name}, {num_tokens} tokens", call, num_bytes, num_flops)


def copies(bench: Bench) -> Iterator[Row]:
    """Copy-on-write of 1 and 64 blocks in all layers of Llama-3.1-8B."""
    num_layers = bench.size(32, 2)
    layers = [kv_cache.allocate(160, BLOCK_SIZE, 8, 128, bench.dtype, bench.device) for _ in range(num_layers)]
    for num_copies in (1, bench.size(64, 2)):
        ids = torch.arange(num_copies, device=bench.device)
        block_bytes = kv_cache.block_bytes(BLOCK_SIZE, 8, 128, bench.dtype)
        num_bytes = 2 * num_copies * num_layers * block_bytes
        call = partial(copy_blocks, layers, ids, ids + 80)
        yield row(bench, f"copy_blocks, {num_copies} in {num_layers} layers", call, num_bytes)


def _random(bench: Bench, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=bench.dtype, device=bench.device)


def _all(rows: Callable[[Bench], Iterator[Row]], bench: Bench) -> list[Row]:
    return list(rows(bench))


PARTS = tuple(
    Part(f"kernels:{rows.__name__}", partial(_all, rows)) for rows in (elementwise, sampling, experts, copies)
)
