"""Correctness of every kernel on this device: random inputs, results against float64, relative errors.

The bar is 1e-2 for bfloat16, which rounds to within 4e-3; what only moves data has to be exact.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from pagewire_kernels import kv_cache
from pagewire_kernels.activation import gelu_and_mul, silu_and_mul
from pagewire_kernels.copy_blocks import copy_blocks
from pagewire_kernels.few_rows_linear import few_rows_linear, tiles_by_rows
from pagewire_kernels.fused_moe import fused_moe
from pagewire_kernels.fused_moe import reference as moe_reference
from pagewire_kernels.layer_norm import layer_norm
from pagewire_kernels.reshape_and_cache import reshape_and_cache
from pagewire_kernels.rms_norm import rms_norm
from pagewire_kernels.rotary_and_cache import RotaryInputs, rotary_and_cache
from pagewire_kernels.sample import gather_logprobs, sample
from pagewire_kernels.sample import reference as sample_reference

from gpu_parts import float64, paged
from gpu_parts.few_rows import few_rows_weights
from gpu_parts.paged import Heads, PagedBatch
from gpu_parts.part import Bench, Part, Row
from gpu_parts.sampling_inputs import sampling_batch
from gpu_parts.step_correctness import step_kernels

LIMITS = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
SOFTCAP = 30.0

Errors = Iterator[tuple[str, float]]
"""(case, error)."""


def checked(check: Callable[[Bench], Errors], limit: float | None, bench: Bench) -> list[Row]:
    """The errors of a check beside its limit; None: the dtype's."""
    limit = LIMITS[bench.dtype] if limit is None else limit
    return [
        # Not `error > limit`: NaN is wrong too.
        {"name": name, "error": error, "limit": limit, "ok": error <= limit}
        for name, error in check(bench)
    ]


def norms(bench: Bench) -> Errors:
    """RMS norm of rows and heads, with and without residual, and layer norm."""
    for num_tokens, hidden in ((1, 2048), (37, 4096), (513, 5120)):
        num_tokens, hidden = bench.size(num_tokens, min(num_tokens, 5)), bench.size(hidden, hidden // 64)
        x, residual = (_random(bench, num_tokens, hidden) for _ in range(2))
        weight, bias = (_random(bench, hidden) for _ in range(2))
        shape = f"{num_tokens} x {hidden}"
        yield f"rms_norm, {shape}", _error(rms_norm(x, weight, 1e-5), float64.rms_norm(x, weight, 1e-5))
        expected = float64.rms_norm(x, weight, 1e-5, residual)
        total = x.double() + residual.double()
        out, out_residual = rms_norm(x.clone(), weight, 1e-5, residual.clone())
        yield f"rms_norm with residual, {shape}", max(_error(out, expected), _error(out_residual, total))
        yield (
            f"layer_norm, {shape}",
            _error(layer_norm(x, weight, bias, 1e-5), float64.layer_norm(x, weight, bias, 1e-5)),
        )
    heads, weight = _random(bench, 19, 12, 128)[:, 2:10], _random(bench, 128)
    yield "rms_norm of heads", _error(rms_norm(heads, weight, 1e-6), float64.rms_norm(heads, weight, 1e-6))


def activations(bench: Bench) -> Errors:
    """SiLU and both forms of GELU."""
    for num_tokens, size in ((1, 14336), (129, 8192), (33, 768)):
        x = _random(bench, num_tokens, 2 * bench.size(size, size // 64))
        shape = f"{num_tokens} x {x.shape[1] // 2}"
        yield f"silu_and_mul, {shape}", _error(silu_and_mul(x), float64.silu_and_mul(x))
        for form in ("none", "tanh"):
            yield f"gelu_and_mul ({form}), {shape}", _error(gelu_and_mul(x, form), float64.gelu_and_mul(x, form))


def few_rows(bench: Bench) -> Errors:
    """Products of 1 to 16 rows with the weights of Llama-3.1-8B and with odd ones, by the table's tile and by the one
    that is not measured."""
    for height, width, gated in (*few_rows_weights(bench), (4098, 4090, True), (1001, 333, False)):
        weight, bias = _random(bench, height, width) * width**-0.5, _random(bench, height)
        tiles = tiles_by_rows(weight, gated=gated)
        for num_rows in (1, 2, 4, 9, 16):
            x = _random(bench, num_rows, width)
            shape = f"{num_rows} x {width} x {height}{', gated' if gated else ''}"
            expected = float64.linear(x, weight, bias, gated)
            for name, tile in (("default", None), ("table", tiles[num_rows] if tiles else None)):
                if name == "default" or tile is not None:
                    out = few_rows_linear(x, weight, bias, gated=gated, tile=tile)
                    yield f"few_rows_linear, {shape}, {name} tile", _error(out, expected)


def rotations(bench: Bench) -> Errors:
    """Rotation and cache write; slots that are not written keep their NaN."""
    for heads in (Heads(32, 8, 128), Heads(32, 8, 64), Heads(14, 2, 64), Heads(3, 1, 80)):
        num_tokens, block_size = 70, 16
        projected = _random(bench, num_tokens, heads.num_heads + 2 * heads.num_kv_heads, heads.head_dim)
        query, key, value = projected.split_with_sizes([heads.num_heads, heads.num_kv_heads, heads.num_kv_heads], 1)
        positions = torch.randint(0, 500, (num_tokens,), device=bench.device)
        angles = torch.rand(500, heads.head_dim // 2, device=bench.device) * 6.28
        cos_sin = torch.cat((angles.cos(), angles.sin()), -1)
        slots = torch.randperm(num_tokens + 26, device=bench.device)[:num_tokens]
        slots[3] = -1
        expected_query, expected_key = (float64.rotate(x, positions, cos_sin) for x in (query, key))
        expected_value = value.clone()
        caches = _empty_caches(bench, heads, 6, block_size)
        rotary_and_cache(RotaryInputs(query, key, value, positions, cos_sin, *caches, slots))
        yield f"rotary_and_cache, query, {heads}", _error(query, expected_query)
        yield f"rotary_and_cache, keys, {heads}", _cache_error(bench, caches, 0, slots, expected_key)
        yield f"rotary_and_cache, values, {heads}", _cache_error(bench, caches, 1, slots, expected_value)


def normed_rotations(bench: Bench) -> Errors:
    """The norm of each head before the rotation, as in Qwen3."""
    heads, num_tokens = Heads(32, 4, 128), 41
    projected = _random(bench, num_tokens, heads.num_heads + 2 * heads.num_kv_heads, heads.head_dim)
    query, key, value = projected.split_with_sizes([heads.num_heads, heads.num_kv_heads, heads.num_kv_heads], 1)
    q_weight, k_weight = (_random(bench, heads.head_dim) for _ in range(2))
    positions, slots = torch.arange(num_tokens, device=bench.device), torch.arange(num_tokens, device=bench.device)
    angles = torch.rand(num_tokens, heads.head_dim // 2, device=bench.device) * 6.28
    cos_sin = torch.cat((angles.cos(), angles.sin()), -1)
    expected_query = float64.rotate(float64.rms_norm(query, q_weight, 1e-6), positions, cos_sin)
    expected_key = float64.rotate(float64.rms_norm(key, k_weight, 1e-6), positions, cos_sin)
    caches = _empty_caches(bench, heads, 3, 16)
    weights = {"q_norm_weight": q_weight, "k_norm_weight": k_weight, "eps": 1e-6}
    rotary_and_cache(RotaryInputs(query, key, value, positions, cos_sin, *caches, slots, **weights))  # type: ignore[arg-type]
    yield f"rotary_and_cache with norms, query, {heads}", _error(query, expected_query)
    yield f"rotary_and_cache with norms, keys, {heads}", _cache_error(bench, caches, 0, slots, expected_key)


def cache_writes(bench: Bench) -> Errors:
    """reshape_and_cache and copy_blocks, which only move data."""
    heads = Heads(8, 3, 72)
    key, value = (_random(bench, 40, heads.num_kv_heads, heads.head_dim) for _ in range(2))
    slots = torch.randperm(64, device=bench.device)[:40]
    slots[[0, 7]] = -1
    caches = _empty_caches(bench, heads, 4, 16)
    reshape_and_cache(key, value, *caches, slots)
    for i, expected in enumerate((key, value)):
        yield f"reshape_and_cache, {('keys', 'values')[i]}", _cache_error(bench, caches, i, slots, expected)
    layers = [tuple(_random(bench, 9, 16, 2, 64) for _ in range(2)) for _ in range(3)]
    before = [[cache.clone() for cache in layer] for layer in layers]
    sources, targets = (torch.tensor(ids, device=bench.device) for ids in ([1, 1, 8], [0, 5, 2]))
    copy_blocks(layers, sources, targets)  # type: ignore[arg-type]
    for layer in before:
        for cache in layer:
            cache[targets] = cache[sources]
    pairs = zip((c for layer in layers for c in layer), (c for layer in before for c in layer), strict=True)
    yield "copy_blocks", float(any(not torch.equal(left, right) for left, right in pairs))


def attention(bench: Bench) -> Errors:
    """Decodes, prefills, continued prefills and mixtures, with every option, at every block size."""
    llama, mixed = Heads(32, 8, 128), ([1, 1, 1, 70, 129, 300], [1, 700, 4097, 70, 1000, 333])
    cases: list[tuple[str, Heads, list[int], list[int], int, dict[str, float]]] = [
        (f"decode, block size {size}", llama, [1] * 5, [1, 63, 64, 1025, 5000], size, {}) for size in (16, 32, 64, 128)
    ]
    cases += [
        ("one long decode", llama, [1], [32_768], 64, {}),
        ("prefill", llama, [2000], [2000], 64, {}),
        ("continued prefill", llama, [512], [4096], 64, {}),
        ("mixture", llama, *mixed, 64, {}),
        ("mixture, window 257", llama, *mixed, 32, {"sliding_window": 257}),
        ("mixture, soft cap", llama, *mixed, 64, {"softcap": SOFTCAP}),
        *((f"mixture, {heads}", heads, *mixed, 64, {}) for heads in OTHER_HEADS),
    ]
    for name, heads, query_lens, seq_lens, block_size, options in cases:
        if bench.tiny:
            heads = Heads(heads.num_heads // heads.num_kv_heads, 1, heads.head_dim)
            query_lens, seq_lens = ([max(1, length // 20) for length in lengths] for lengths in (query_lens, seq_lens))
        yield f"attention, {name}", _attention_error(bench, heads, query_lens, seq_lens, block_size, options)


OTHER_HEADS = (Heads(32, 8, 64), Heads(32, 4, 128), Heads(14, 2, 64), Heads(12, 12, 64), Heads(16, 1, 128))


def _attention_error(
    bench: Bench, heads: Heads, query_lens: list[int], seq_lens: list[int], block_size: int, options: dict[str, float]
) -> float:
    batch = paged.make(bench, heads, query_lens, seq_lens, block_size)
    out = batch.attend(**options)  # type: ignore[arg-type]
    expected = _exact_attention(batch, **options)
    # The worst sequence: a short one that is wrong must not hide behind long ones.
    return max(_error(o, e) for o, e in zip(torch.split(out, query_lens), expected, strict=True))


def _exact_attention(batch: PagedBatch, **options: float) -> list[torch.Tensor]:
    """Of each sequence, in float64."""
    inputs = ((batch.query, batch.query_lens), (batch.keys, batch.seq_lens), (batch.values, batch.seq_lens))
    parts = zip(*(torch.split(*x) for x in inputs), strict=True)
    return [float64.attention(q, k, v, batch.scale, **options) for q, k, v in parts]  # type: ignore[arg-type]


def void_rows(bench: Bench) -> Errors:
    """Sequences that have stopped: their output is zero, and the others' is right. Bits of these may change: into how
    many splits a sequence goes depends on all of the batch."""
    heads, seq_lens = Heads(8, 2, 128), [50, 90, 70]
    for name, query_lens in (("decodes", [1, 1, 1]), ("prefills", [1, 20, 33])):
        batch = paged.make(bench, heads, query_lens, seq_lens, 16)
        batch.lens[1] = 0
        first, void, last = torch.split(batch.attend(), query_lens)
        exact = _exact_attention(batch)
        error = max(_error(first, exact[0]), _error(last, exact[2]))
        yield f"attention, void row among {name}", error if bool((void == 0).all()) else float("inf")


def mixtures(bench: Bench) -> Errors:
    """Mixtures of experts: Mixtral's and Qwen3-MoE's shapes, from one token to a prompt."""
    for name, num_experts, top_k, hidden, size in (("mixtral", 8, 2, 1024, 3584), ("qwen3", 128, 8, 2048, 768)):
        num_experts, hidden, size = bench.size(num_experts, 4 * top_k), bench.size(hidden, 64), bench.size(size, 48)
        gate_up = _random(bench, num_experts, 2 * size, hidden) * hidden**-0.5
        down = _random(bench, num_experts, hidden, size) * size**-0.5
        for num_tokens in (1, 7, 64, bench.size(1000, 33)):
            x, logits = _random(bench, num_tokens, hidden), _random(bench, num_tokens, num_experts)
            out = fused_moe(x, logits, gate_up, down, top_k=top_k, renormalise=True)
            # bfloat16 logits have equals: the definition says which of them are chosen.
            weights, experts = moe_reference.route(logits, top_k, True)
            expected = float64.mixture(x, gate_up, down, weights, experts)
            yield f"fused_moe, {name}, {num_tokens} tokens", _error(out, expected)


def samples(bench: Bench) -> Errors:
    """Share of rows whose token is not the reference's; a filter's border may fall differently by rounding."""
    num_rows, vocab_size = bench.size(128, 8), bench.size(128_256, 1000)
    for name, options in (
        ("greedy", {"temperature": 0.0}),
        ("temperature", {"temperature": 0.8}),
        ("top_k", {"top_k": 50}),
        ("top_p", {"top_p": 0.9}),
        ("min_p", {"min_p": 0.05}),
        ("all filters", {"temperature": 0.7, "top_k": 100, "top_p": 0.95, "min_p": 0.02}),
        ("penalties", {"presence": 0.5, "frequency": 0.3, "repetition": 1.2}),
    ):
        logits = torch.randn(num_rows, vocab_size, device=bench.device) * 3
        params = sampling_batch(bench.device, num_rows, vocab_size, **options)
        expected = sample_reference.sample(logits.clone(), params)
        yield f"sample, {name}", float((sample(logits.clone(), params) != expected).double().mean())
    logits = torch.randn(num_rows, vocab_size, device=bench.device) * 3
    chosen = logits.argmax(-1)
    chosen[::2] = 5
    outputs = gather_logprobs(logits, chosen, 5)
    exact = logits.double().log_softmax(-1)
    yield "gather_logprobs, chosen", _error(outputs[0], exact.gather(1, chosen[:, None])[:, 0])
    yield "gather_logprobs, top", _error(outputs[3], exact.topk(5).values)


def _random(bench: Bench, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=bench.dtype, device=bench.device)


def _error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float64.relative_error(out, expected)


def _empty_caches(bench: Bench, heads: Heads, num_blocks: int, block_size: int) -> kv_cache.KVCache:
    caches = kv_cache.allocate(num_blocks, block_size, heads.num_kv_heads, heads.head_dim, bench.dtype, bench.device)
    for cache in caches:
        cache.fill_(torch.nan)
    return caches


def _cache_error(
    bench: Bench, caches: kv_cache.KVCache, which: int, slots: torch.Tensor, expected: torch.Tensor
) -> float:
    """The error of the slots that were written; infinite if any other was touched."""
    if bench.device.type == "cpu":
        caches = kv_cache.to_nhd_layout(*caches)
    rows = caches[which].flatten(0, 1)
    is_written = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    is_written[slots[slots >= 0]] = True
    if not rows[~is_written].isnan().all():
        return float("inf")
    return _error(rows[slots[slots >= 0]], expected[slots >= 0].double())


CHECKS: tuple[tuple[str, Callable[[Bench], Errors], float | None], ...] = (
    ("norms", norms, None),
    ("activations", activations, None),
    ("few_rows", few_rows, None),
    ("rotary_and_cache", rotations, None),
    ("normed_rotary_and_cache", normed_rotations, None),
    ("cache_writes", cache_writes, 0.0),
    ("step_kernels", step_kernels, 0.0),
    ("attention", attention, None),
    ("void_rows", void_rows, None),
    ("fused_moe", mixtures, None),
    # Of a thousand draws, a few may stand on a filter's border.
    ("sample", samples, 0.01),
)
PARTS = tuple(Part(f"correctness:{name}", partial(checked, check, limit)) for name, check, limit in CHECKS)
