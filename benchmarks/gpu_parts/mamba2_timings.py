"""Mamba-2's recurrence in the shapes of Granite 4 Small and Nemotron-H, and the gated norm behind it.

Bytes of decodes are the states, read and written, beside which a copy stands; operations of prompts are those of the
recurrence itself.
"""

from collections.abc import Iterator
from functools import partial

import torch
from pagewire_kernels.gated_rms_norm import gated_rms_norm
from pagewire_kernels.mamba2 import Mamba2Inputs, mamba2

from gpu_parts.part import Bench, Part, Row
from gpu_parts.roofline import Call, row

Shape = tuple[int, int, int, int]
"""Heads, groups, width of a head, size of its state for each of these."""
SHAPES: dict[str, Shape] = {"granite-4-small": (128, 1, 64, 128), "nemotron-h": (128, 8, 64, 128)}


def mamba2_inputs(bench: Bench, shape: Shape, query_lens: list[int], num_decodes: int = 0) -> Mamba2Inputs:
    """Sequences whose states are written where they are read."""
    num_heads, num_groups, head_dim, state_size = (4, 2, 16, 16) if bench.tiny else shape
    num_tokens, num_seqs, device = sum(query_lens), len(query_lens), bench.device
    sizes = [num_heads * head_dim, num_groups * state_size, num_groups * state_size, num_heads]
    projected = torch.randn(num_tokens, sum(sizes), dtype=bench.dtype, device=device)
    x, b, c, dt = projected.split_with_sizes(sizes, 1)
    slots = torch.arange(num_seqs, dtype=torch.int32, device=device)
    starts = torch.tensor([0, *query_lens], device=device).cumsum(0)
    return Mamba2Inputs(
        x=x.view(num_tokens, num_heads, head_dim),
        dt=dt,
        b=b.view(num_tokens, num_groups, state_size),
        c=c.view(num_tokens, num_groups, state_size),
        decay=-torch.linspace(0.1, 8.0, num_heads, device=device),
        skip=torch.ones(num_heads, device=device),
        dt_bias=torch.full((num_heads,), -2.0, device=device),
        state=torch.zeros(num_seqs, num_heads, head_dim, state_size, device=device),
        read_slots=slots,
        write_slots=slots.clone(),
        query_start_loc=starts.to(torch.int32),
        max_query_len=max(query_lens),
        num_decodes=num_decodes,
    )


def mamba2_rows(bench: Bench, name: str, shape: Shape) -> Iterator[Row]:
    """Decodes of 1 to 256 sequences, and prompts of one sequence and of several."""
    for num_seqs in (1, 16, 64, bench.size(256, 4)):

        def decode(num_seqs: int = num_seqs) -> Call:
            return partial(mamba2, mamba2_inputs(bench, shape, [1] * num_seqs, num_seqs))

        state_bytes = 2 * mamba2_inputs(bench, shape, [1]).state.nbytes * num_seqs
        yield row(bench, f"mamba2, {name}, {num_seqs} decodes", decode, state_bytes)
    for num_seqs, query_len in ((1, bench.size(8192, 70)), (bench.size(8, 2), bench.size(1024, 40))):
        inputs = mamba2_inputs(bench, shape, [query_len] * num_seqs)
        # x and b are multiplied and added to the state, which is multiplied by c.
        num_flops = 4.0 * inputs.x.numel() * inputs.state_size
        num_bytes = 2 * inputs.x.nbytes + 2 * inputs.b.nbytes + 2 * inputs.state.nbytes
        call = partial(_itself, partial(mamba2, inputs))
        yield row(bench, f"mamba2, {name}, {num_seqs} x {query_len} tokens", call, num_bytes, num_flops)


def norm_rows(bench: Bench) -> Iterator[Row]:
    """The gated norm of a decode and of a prompt, in one group and in eight."""
    width = bench.size(8192, 256)
    for num_tokens in (64, bench.size(8192, 70)):
        for num_groups in (1, 8):

            def norm(num_tokens: int = num_tokens, group_size: int = width // num_groups) -> Call:
                x, gate = torch.randn(2, num_tokens, width, dtype=bench.dtype, device=bench.device)
                weight = torch.ones(width, dtype=bench.dtype, device=bench.device)
                return partial(gated_rms_norm, x, gate, weight, 1e-5, group_size, norm_first=False)

            num_bytes = 3 * num_tokens * width * bench.dtype.itemsize
            yield row(bench, f"gated_rms_norm, {num_tokens} tokens in {num_groups} groups", norm, num_bytes)


def _itself(call: Call) -> Call:
    # All calls share their inputs, which are larger than any cache.
    return call


def _all(bench: Bench) -> list[Row]:
    rows = [each for name, shape in SHAPES.items() for each in mamba2_rows(bench, name, shape)]
    return rows + list(norm_rows(bench))


PARTS = (Part("kernels:mamba2", _all),)
