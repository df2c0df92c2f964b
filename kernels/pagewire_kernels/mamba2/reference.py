"""The definition of mamba2."""

import torch
import torch.nn.functional as F

from pagewire_kernels.mamba2.inputs import Mamba2Inputs


def mamba2(inputs: Mamba2Inputs) -> torch.Tensor:
    """The recurrence, token by token, in float32; in float64 if x is float64."""
    dtype = torch.promote_types(inputs.x.dtype, torch.float32)
    repeats = inputs.num_heads // inputs.num_groups
    b, c = (each.to(dtype).repeat_interleave(repeats, dim=1) for each in (inputs.b, inputs.c))
    x, out = inputs.x.to(dtype), torch.zeros(inputs.x.shape, dtype=dtype, device=inputs.x.device)
    dt = F.softplus(inputs.dt.to(dtype) + inputs.dt_bias).clamp(inputs.dt_min, inputs.dt_max)
    slots = zip(inputs.read_slots.tolist(), inputs.write_slots.tolist(), strict=True)
    for row, (read_slot, write_slot) in enumerate(slots):
        start, end = inputs.query_start_loc[row : row + 2].tolist()
        state = inputs.state[max(read_slot, 0)].to(dtype)  # [num_heads, head_dim, state_size]
        state = state if read_slot >= 0 else torch.zeros_like(state)
        for t in range(start, end):
            added = (dt[t, :, None] * x[t])[:, :, None] * b[t, :, None, :]
            state = state * (dt[t] * inputs.decay).exp()[:, None, None] + added
            out[t] = (state * c[t, :, None, :]).sum(-1) + inputs.skip[:, None] * x[t]
        if start < end:
            inputs.state[write_slot] = state.to(inputs.state.dtype)
    out = out if inputs.gate is None else out * F.silu(inputs.gate.to(dtype))
    return out.to(inputs.x.dtype)
