"""Batches for the tests of mamba2. Slots that no sequence reads hold NaN, and so do rows beyond the sequences'."""

from dataclasses import fields, replace
from typing import Any

import torch
from pagewire_kernels.mamba2 import Mamba2Inputs


def mamba2_inputs(
    query_lens: list[int],
    num_heads: int = 4,
    head_dim: int = 8,
    num_groups: int = 2,
    state_size: int = 16,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    gated: bool = False,
    padding: int = 0,
    **options: Any,
) -> Mamba2Inputs:
    """A batch of which every third sequence begins, every third goes on in place, and the others in another slot.

    Args:
        padding: Rows behind those of the sequences.
        options: More fields, or others.
    """
    generator = torch.Generator().manual_seed(sum(query_lens) + num_heads)
    num_seqs, num_tokens = len(query_lens), sum(query_lens) + padding
    slots = torch.randperm(2 * num_seqs + 1, generator=generator, dtype=torch.int32)
    write_slots, read_slots = slots[:num_seqs].clone(), slots[num_seqs : 2 * num_seqs].clone()
    read_slots[1::3] = write_slots[1::3]
    read_slots[2::3] = -1
    state = torch.full((len(slots), num_heads, head_dim, state_size), torch.nan)
    for slot in read_slots[read_slots >= 0]:
        state[slot] = torch.randn(num_heads, head_dim, state_size, generator=generator)

    def rows(*sizes: int) -> torch.Tensor:
        values = torch.randn(num_tokens, sum(sizes), generator=generator)
        values[num_tokens - padding :] = torch.nan
        return values.to(dtype)

    # Slices of wider tensors, as they are of the projection and the convolution.
    inner, grouped = num_heads * head_dim, num_groups * state_size
    gate, dt = rows(inner, 3, num_heads).split_with_sizes([inner, 3, num_heads], dim=1)[::2]
    x, b, c = rows(inner, grouped, grouped).split_with_sizes([inner, grouped, grouped], dim=1)
    starts = [sum(query_lens[:i]) for i in range(num_seqs + 1)]
    inputs = Mamba2Inputs(
        x=x.unflatten(1, (num_heads, head_dim)),
        dt=dt,
        b=b.unflatten(1, (num_groups, state_size)),
        c=c.unflatten(1, (num_groups, state_size)),
        decay=-torch.linspace(0.05, 8.0, num_heads),
        skip=torch.randn(num_heads, generator=generator),
        dt_bias=torch.randn(num_heads, generator=generator) - 2,
        state=state,
        read_slots=read_slots,
        write_slots=write_slots,
        query_start_loc=torch.tensor(starts, dtype=torch.int32),
        gate=gate.unflatten(1, (num_heads, head_dim)) if gated else None,
    )
    return replace(_converted(inputs, lambda tensor: tensor.to(device)), **options)


def in_float64(inputs: Mamba2Inputs) -> Mamba2Inputs:
    """A copy of the batch on the CPU, states included, with every number as float64."""
    return _converted(
        inputs, lambda tensor: tensor.detach().cpu().clone().double() if tensor.is_floating_point() else tensor.cpu()
    )


def _converted(inputs: Mamba2Inputs, convert: Any) -> Mamba2Inputs:
    tensors = {f.name: getattr(inputs, f.name) for f in fields(inputs)}
    return replace(inputs, **{n: convert(t) for n, t in tensors.items() if isinstance(t, torch.Tensor)})
