"""Times the CPU kernels: attention of decode and prefill batches, sampling, and the small ops of a layer.

Attention cycles through as many layers' caches as a model has, so that keys and values come from memory as they do
between the layers of a real step. torch's operators are timed beside ours where there are equivalent ones. On a machine
that does other work too, run it with GOMP_SPINCOUNT=2000: OpenMP's threads otherwise spin while those they wait for
have no core.
"""

import argparse
import os
from collections.abc import Callable
from itertools import cycle
from time import perf_counter

import torch
from gpu_parts.sampling_inputs import sampling_batch
from machine import print_table, save_result, spread
from pagewire_kernels import kv_cache
from pagewire_kernels.activation import silu_and_mul
from pagewire_kernels.cpu import threads as cpu_threads
from pagewire_kernels.paged_attention import AttentionInputs, paged_attention
from pagewire_kernels.rms_norm import rms_norm
from pagewire_kernels.rotary_and_cache import RotaryInputs, rotary_and_cache
from pagewire_kernels.sample import SamplingBatch, Stage, sample

BLOCK_SIZE = 16
MIN_SAMPLE_S = 0.02
"""A sample repeats its call for at least this long."""

Row = dict[str, object]


def measure(call: Callable[[], object], num_samples: int) -> dict[str, object]:
    """Microseconds of one call, over num_samples samples."""
    call()
    start = perf_counter()
    call()
    repeats = max(1, int(MIN_SAMPLE_S / (perf_counter() - start)))
    samples_us = []
    for _ in range(num_samples):
        start = perf_counter()
        for _ in range(repeats):
            call()
        samples_us.append((perf_counter() - start) / repeats * 1e6)
    return spread(samples_us)


def attention_call(
    query_lens: list[int], seq_lens: list[int], num_heads: int, num_kv_heads: int, head_dim: int, num_layers: int
) -> Callable[[], torch.Tensor]:
    """Attention of the next layer at each call."""
    num_blocks = [-(-length // BLOCK_SIZE) for length in seq_lens]
    shape = (sum(num_blocks), BLOCK_SIZE, num_kv_heads, head_dim)
    layers = [kv_cache.allocate(*shape, torch.float32, torch.device("cpu")) for _ in range(num_layers)]
    for cache in (cache for layer in layers for cache in layer):
        cache.normal_()
    block_tables = torch.zeros((len(seq_lens), max(num_blocks)), dtype=torch.int32)
    pool = torch.randperm(sum(num_blocks), dtype=torch.int32)
    for row, blocks in enumerate(torch.split(pool, num_blocks)):
        block_tables[row, : len(blocks)] = blocks
    query = torch.randn(sum(query_lens), num_heads, head_dim)
    starts = torch.tensor([0, *query_lens]).cumsum(0).int()
    lens = torch.tensor(seq_lens, dtype=torch.int32)
    turns = cycle(layers)

    def call() -> torch.Tensor:
        keys, values = next(turns)
        return paged_attention(
            AttentionInputs(
                query,
                keys,
                values,
                block_tables,
                starts,
                lens,
                scale=head_dim**-0.5,
                max_query_len=max(query_lens),
                max_seq_len=max(seq_lens),
            )
        )

    return call


def attention_rows(num_samples: int) -> list[Row]:
    """Times two decode shapes of the service, and a prefill chunk at the end of two contexts."""
    rows: list[Row] = []
    for name, seq_lens, heads, num_layers in (
        ("decode, 16 sequences of 128-188, 12/4 heads of 64", [128 + 4 * i for i in range(16)], (12, 4, 64), 12),
        ("decode, 256 sequences of 32-159, 4/2 heads of 32", [32 + i // 2 for i in range(256)], (4, 2, 32), 2),
    ):
        took = measure(attention_call([1] * len(seq_lens), seq_lens, *heads, num_layers), num_samples)
        num_bytes = sum(seq_lens) * 2 * heads[1] * heads[2] * 4
        rows.append({"name": name, "us": took, "rate": _rate(num_bytes, took, "GB/s")})
    for context in (512, 2048):
        took = measure(attention_call([512], [context], 12, 4, 64, 2), num_samples)
        flops = 4 * 12 * 64 * sum(range(context - 511, context + 1))
        name = f"prefill, last 512 of {context}, 12/4 heads of 64"
        rows.append({"name": name, "us": took, "rate": _rate(flops, took, "GFLOP/s")})
    query, keys = torch.randn(1, 12, 512, 64), torch.randn(1, 12, 512, 64)
    attend = torch.nn.functional.scaled_dot_product_attention
    took = measure(lambda: attend(query, keys, keys, is_causal=True), num_samples)
    flops = 4 * 12 * 64 * sum(range(1, 513))
    name = "torch's scaled_dot_product_attention, causal 512, 12 heads of 64"
    rows.append({"name": name, "us": took, "rate": _rate(flops, took, "GFLOP/s")})
    matrix = torch.randn(1024, 1024)
    took = measure(lambda: matrix @ matrix, num_samples)
    rows.append({"name": "torch matmul, 1024 cubed", "us": took, "rate": _rate(2 * 1024**3, took, "GFLOP/s")})
    return rows


def sampling_call(num_rows: int, vocab_size: int, params: SamplingBatch) -> Callable[[], torch.Tensor]:
    """Sampling from a fresh copy of the same logits; the copy is part of the time."""
    logits = torch.randn(num_rows, vocab_size) * 3
    scratch = torch.empty_like(logits)
    return lambda: sample(scratch.copy_(logits), params)


def sampling_rows(num_samples: int) -> list[Row]:
    """Sampling of the two decode batches."""
    rows: list[Row] = []
    for num_rows, vocab_size in ((16, 32_000), (256, 2_048)):
        for name, temperature, top_k, top_p in (
            ("greedy", 0.0, 0, 1.0),
            ("temperature 1", 1.0, 0, 1.0),
            ("top_p 0.9", 1.0, 0, 0.9),
            ("top_k 50", 1.0, 50, 1.0),
        ):
            stages = Stage.DRAW if temperature else Stage(0)
            options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
            params = sampling_batch(torch.device("cpu"), num_rows, vocab_size, stages, **options)
            took = measure(sampling_call(num_rows, vocab_size, params), num_samples)
            rate = _rate(num_rows * vocab_size, took, "G logits/s")
            rows.append({"name": f"sample, {num_rows} x {vocab_size}, {name}", "us": took, "rate": rate})
    return rows


def layer_calls(num_tokens: int) -> dict[str, Callable[[], object]]:
    """The small ops of a layer of the 110M model."""
    caches = kv_cache.allocate(64, BLOCK_SIZE, 4, 64, torch.float32, torch.device("cpu"))
    angles, weight = torch.randn(512, 64), torch.ones(768)
    hidden, residual = torch.randn(num_tokens, 768), torch.randn(num_tokens, 768)
    gate_up = torch.randn(num_tokens, 4096)
    projected = torch.randn(num_tokens, 20, 64)
    query, key, value = projected[:, :12], projected[:, 12:16], projected[:, 16:]
    slots = torch.arange(num_tokens)
    return {
        "rms_norm with residual": lambda: rms_norm(hidden, weight, 1e-5, residual),
        "silu_and_mul": lambda: silu_and_mul(gate_up),
        "rotary_and_cache": lambda: rotary_and_cache(RotaryInputs(query, key, value, slots, angles, *caches, slots)),
    }


def layer_rows(num_samples: int) -> list[Row]:
    """The small ops at one token and at 16."""
    return [
        {"name": f"{name}, {num_tokens} tokens", "us": measure(call, num_samples), "rate": ""}
        for num_tokens in (1, 16)
        for name, call in layer_calls(num_tokens).items()
    ]


def _rate(amount: float, took: dict[str, object], unit: str) -> str:
    median_us = took["median"]
    assert isinstance(median_us, float)
    return f"{amount / median_us / 1e3:.1f} {unit}"


def main() -> None:
    """Measures everything at each number of threads and saves the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads")
    parser.add_argument("--samples", type=int, default=15, help="samples of each measurement")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    result: dict[str, list[Row]] = {}
    for num_threads in arguments.threads:
        cpu_threads.set_num_threads(num_threads)
        rows = [*attention_rows(arguments.samples), *sampling_rows(arguments.samples), *layer_rows(arguments.samples)]
        result[f"threads_{num_threads}"] = rows
        cells = [[row["name"], row["us"]["median"], row["us"]["min"], row["rate"]] for row in rows]  # type: ignore[index]
        print_table(f"CPU kernels, {num_threads} threads", ["", "median us", "min us", "rate"], cells)
    settings = {"block_size": BLOCK_SIZE, "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT"), **vars(arguments)}
    save_result("cpu_kernels", settings, result)


if __name__ == "__main__":
    main()
