"""Batches for the tests of gated_delta_net, and what is expected of them in float64."""

from dataclasses import fields, replace

import torch
from pagewire_kernels.gated_delta_net import DeltaInputs, reference


def delta_inputs(
    query_lens: list[int],
    num_key_heads: int = 2,
    group_size: int = 2,
    key_dim: int = 16,
    value_dim: int = 16,
    *,
    dtype: torch.dtype = torch.float32,
    num_decodes: int = 0,
    beta_scale: float = 1.0,
    in_place: bool = False,
    same_keys: bool = False,
    fresh: bool = False,
) -> DeltaInputs:
    """A batch whose slots are scattered; those that nothing reads hold NaN.

    Args:
        in_place: States are written to the slots that they are read from.
        same_keys: All tokens have nearly the same key, as those of a repeated token have.
        fresh: Every sequence begins with a state of zeros; otherwise every third does.
    """
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    num_seqs, num_tokens, num_heads = len(query_lens), sum(query_lens), num_key_heads * group_size
    slots = torch.randperm(2 * num_seqs + 1, generator=generator).to(torch.int32)
    reads, writes = slots[:num_seqs].clone(), slots[num_seqs : 2 * num_seqs]
    state = torch.full((2 * num_seqs + 1, num_heads, key_dim, value_dim), torch.nan)
    for seq, slot in enumerate(reads.tolist()):
        state[slot] = randn(num_heads, key_dim, value_dim).float()
        if fresh or seq % 3 == 2:
            reads[seq] = -1
    sizes = [num_key_heads * key_dim, num_key_heads * key_dim, *[num_heads * value_dim] * 2, num_heads, num_heads]
    # Slices of one tensor, as they are of the projection.
    parts = torch.split(randn(num_tokens, sum(sizes) + 16)[:, 16:], sizes, dim=1)
    query, key = (part.unflatten(1, (num_key_heads, key_dim)) for part in parts[:2])
    value, gate = (part.unflatten(1, (num_heads, value_dim)) for part in parts[2:4])
    if same_keys and num_tokens:
        key.copy_(key[:1] + 0.01 * key)
        parts[4].add_(4)
        parts[5].sub_(8)
    starts = [sum(query_lens[:i]) for i in range(num_seqs + 1)]
    return DeltaInputs(
        query=query,
        key=key,
        value=value,
        beta_logits=parts[4],
        decay_logits=parts[5],
        a_log=torch.rand(num_heads, generator=generator) * 2 - 1,
        dt_bias=torch.randn(num_heads, generator=generator),
        gate=gate,
        norm_weight=randn(value_dim),
        eps=1e-6,
        state=state,
        read_slots=reads,
        write_slots=torch.where(reads >= 0, reads, writes) if in_place else writes.clone(),
        query_start_loc=torch.tensor(starts, dtype=torch.int32),
        max_query_len=max(query_lens, default=0),
        num_decodes=num_decodes,
        beta_scale=beta_scale,
    )


def expected(inputs: DeltaInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """The output, and all states afterwards, by the reference in float64; inputs are not changed."""
    wide = {
        field.name: getattr(inputs, field.name).double()
        for field in fields(inputs)
        if isinstance(getattr(inputs, field.name), torch.Tensor) and getattr(inputs, field.name).is_floating_point()
    }
    exact = replace(inputs, **wide)
    return reference.gated_delta_net(exact), exact.state
