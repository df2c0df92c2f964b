"""Every kernel but attention against its roofline: the fused small ops at 8,192 tokens, sampling, experts, copies.

Bytes are those that must move: every input is read once, every output written once.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle

import torch
from pagewire_kernels import kv_cache
from pagewire_kernels.activation import silu_and_mul
from pagewire_kernels.copy_blocks import copy_blocks
from pagewire_kernels.fused_moe import RouterSpec, fused_moe
from pagewire_kernels.layer_norm import layer_norm
from pagewire_kernels.rms_norm import rms_norm
from pagewire_kernels.rotary_and_cache import RotaryInputs, rotary_and_cache
from pagewire_kernels.sample import SamplingBatch, Stage, gather_logprobs, sample

from gpu_parts.paged import Heads
from gpu_parts.part import Bench, Part, Row
from gpu_parts.roofline import MIN_COPIES, Call, row
from gpu_parts.sampling_inputs import sampling_batch

BLOCK_SIZE = 64
NUM_WEIGHT_SETS = 4
"""Sets of expert weights that calls use in turn. A call of one token reads 75 MB of a set, and three others follow."""
HIDDEN, INTERMEDIATE = 4096, 14_336
"""The sizes of Llama-3.1-8B."""


def elementwise(bench: Bench) -> Iterator[Row]:
    """The fused small ops of a layer of Llama-3.1-8B, at a prefill's and at a decode batch's tokens."""
    for num_tokens in (bench.size(8192, 64), bench.size(256, 8)):
        yield from norms_and_activation(bench, num_tokens)
        yield rotary(bench, num_tokens)


def norms_and_activation(bench: Bench, num_tokens: int) -> Iterator[Row]:
    """Times norms and activations. Copies share the weights, whose bytes are negligible beside x."""
    hidden, size = bench.size(HIDDEN, 64), bench.size(INTERMEDIATE, 128)
    weight, bias = (_random(bench, hidden) for _ in range(2))
    x, gate_up = partial(_random, bench, num_tokens, hidden), partial(_random, bench, num_tokens, 2 * size)
    element = bench.dtype.itemsize
    x_bytes, gate_up_bytes = num_tokens * hidden * element, num_tokens * 2 * size * element
    name = f"{num_tokens} tokens"
    yield row(bench, f"rms_norm, {name}", lambda: partial(rms_norm, x(), weight, 1e-5), 2 * x_bytes)
    yield row(bench, f"rms_norm with residual, {name}", lambda: partial(rms_norm, x(), weight, 1e-5, x()), 4 * x_bytes)
    yield row(bench, f"layer_norm, {name}", lambda: partial(layer_norm, x(), weight, bias, 1e-5), 2 * x_bytes)
    yield row(bench, f"silu_and_mul, {name}", lambda: partial(silu_and_mul, gate_up()), 1.5 * gate_up_bytes)


def rotary(bench: Bench, num_tokens: int) -> Row:
    """Rotation and cache write: queries change in place, rotated keys and values go to the cache."""
    heads = Heads(4, 2, 32) if bench.tiny else Heads(32, 8, 128)
    num_blocks = -(-num_tokens // BLOCK_SIZE)
    parts = [heads.num_heads, heads.num_kv_heads, heads.num_kv_heads]

    def make() -> Call:
        query, key, value = _random(bench, num_tokens, sum(parts), heads.head_dim).split_with_sizes(parts, 1)
        caches = kv_cache.allocate(
            num_blocks, BLOCK_SIZE, heads.num_kv_heads, heads.head_dim, bench.dtype, bench.device
        )
        positions = torch.arange(num_tokens, device=bench.device)
        # Random rotations: queries are rotated repeatedly, and other factors would make them grow or shrink.
        angles = torch.randn(num_tokens, heads.head_dim // 2, device=bench.device)
        cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
        slots = torch.randperm(num_blocks * BLOCK_SIZE, device=bench.device)[:num_tokens]
        return partial(rotary_and_cache, RotaryInputs(query, key, value, positions, cos_sin, *caches, slots))

    # The rotated key is not written back, because the cache has it.
    num_elements = heads.head_dim * (2 * heads.num_heads + 4 * heads.num_kv_heads)
    # Angles are float32; a position and a slot take 8 bytes each.
    num_bytes = num_tokens * (num_elements * bench.dtype.itemsize + 4 * heads.head_dim + 16)
    return row(bench, f"rotary_and_cache, {num_tokens} tokens", make, num_bytes)


def sampling(bench: Bench) -> Iterator[Row]:
    """256 rows of 128,256 logits; the bytes are one pass over them."""
    num_rows, vocab_size = bench.size(256, 8), bench.size(128_256, 1000)
    logits = torch.randn(num_rows, vocab_size, device=bench.device) * 3
    cases: tuple[tuple[str, dict[str, float], Stage], ...] = (
        ("greedy", {"temperature": 0.0}, Stage(0)),
        ("temperature", {}, Stage.DRAW),
        ("top_k 50", {"top_k": 50}, Stage.DRAW),
        ("top_p 0.9", {"top_p": 0.9}, Stage.DRAW),
        ("min_p 0.05", {"min_p": 0.05}, Stage.DRAW),
        ("penalties", {"presence_penalty": 0.5, "repetition_penalty": 1.1}, Stage.DRAW | Stage.PENALTIES),
    )
    for name, options, stages in cases:
        params = sampling_batch(bench.device, num_rows, vocab_size, stages, **options)
        yield _sampling_row(bench, f"sample, {num_rows} x {vocab_size}, {name}", logits, params)
    chosen = logits.argmax(-1)
    name = f"gather_logprobs, {num_rows} x {vocab_size}, top 5"
    yield row(bench, name, lambda: partial(gather_logprobs, logits.clone(), chosen, 5), logits.nbytes)


def _sampling_row(bench: Bench, name: str, logits: torch.Tensor, params: SamplingBatch) -> Row:
    scratch: list[torch.Tensor] = []

    def make() -> Call:
        scratch.append(logits.clone())
        return partial(sample, scratch[-1], params)

    def restore() -> None:
        for copy in scratch:
            copy.copy_(logits)

    # Logits are restored on a CPU, which changes them in place; a GPU only reads them.
    return row(bench, name, make, logits.nbytes, prepare=restore if bench.device.type == "cpu" else None)


def experts(bench: Bench) -> Iterator[Row]:
    """The experts of Qwen3-30B-A3B and Mixtral-8x7B: weights of the experts that are hit, and the operations done."""
    for name, num_experts, top_k, hidden, size in (
        ("qwen3-30b-a3b", 128, 8, 2048, 768),
        ("mixtral-8x7b", 8, 2, 4096, 14_336),
    ):
        num_experts, hidden, size = bench.size(num_experts, 4 * top_k), bench.size(hidden, 64), bench.size(size, 48)
        weights = [
            (_random(bench, num_experts, 2 * size, hidden), _random(bench, num_experts, hidden, size))
            for _ in range(NUM_WEIGHT_SETS)
        ]
        for num_tokens in (1, 16, 64, bench.size(256, 32), bench.size(8192, 64)):
            yield _experts_row(bench, f"fused_moe, {name}, {num_tokens} tokens", num_tokens, weights, top_k)


def _experts_row(
    bench: Bench, name: str, num_tokens: int, weights: list[tuple[torch.Tensor, torch.Tensor]], top_k: int
) -> Row:
    num_experts, hidden, size = weights[0][1].shape
    # All calls use the same tokens, so that they hit the same experts.
    logits = _random(bench, num_tokens, num_experts)
    num_hit = int(torch.unique(logits.topk(top_k).indices).numel())
    num_bytes = (num_hit * 3 * size * hidden + 2 * num_tokens * hidden) * bench.dtype.itemsize
    turn = cycle(weights)

    def make() -> Call:
        x = _random(bench, num_tokens, hidden)
        return partial(fused_moe, x, logits, *next(turn), RouterSpec(top_k, renormalise=True))

    return row(bench, name, make, num_bytes, 6 * num_tokens * top_k * size * hidden)


def copies(bench: Bench) -> Iterator[Row]:
    """Copy-on-write of 1 and 64 blocks in all layers of Llama-3.1-8B."""
    num_layers, most = bench.size(32, 2), bench.size(64, 2)
    # There is one set of layers, in which every call copies different blocks.
    half = MIN_COPIES * most
    layers = [kv_cache.allocate(2 * half, BLOCK_SIZE, 8, 128, bench.dtype, bench.device) for _ in range(num_layers)]
    for layer in layers:
        for cache in layer:
            cache.normal_()
    block_bytes = kv_cache.block_bytes(BLOCK_SIZE, 8, 128, bench.dtype)
    for num_blocks in (1, most):
        sources = [torch.arange(i, i + num_blocks, device=bench.device) for i in range(0, half, num_blocks)]
        calls = [partial(copy_blocks, layers, ids, ids + half) for ids in sources]
        name = f"copy_blocks, {num_blocks} in {num_layers} layers"
        num_bytes = 2 * num_blocks * num_layers * block_bytes
        yield row(bench, name, partial(next, iter(calls)), num_bytes, max_copies=len(calls))


def _random(bench: Bench, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=bench.dtype, device=bench.device)


def _all(rows: Callable[[Bench], Iterator[Row]], bench: Bench) -> list[Row]:
    return list(rows(bench))


PARTS = tuple(
    Part(f"kernels:{rows.__name__}", partial(_all, rows)) for rows in (elementwise, sampling, experts, copies)
)
