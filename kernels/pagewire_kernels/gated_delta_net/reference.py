"""The definition of gated_delta_net."""

import torch
import torch.nn.functional as F

from pagewire_kernels.gated_delta_net.inputs import NORM_EPS, DeltaInputs


def gated_delta_net(inputs: DeltaInputs) -> torch.Tensor:
    """The recurrence itself, token by token, in float32; in float64 if the query is float64."""
    out = torch.zeros_like(inputs.value)
    group_size = inputs.num_heads // inputs.num_key_heads
    tensors = inputs.query, inputs.key, inputs.value, inputs.beta_logits, inputs.decay_logits, inputs.gate
    query, key, value, beta_logits, decay_logits, gate = (_wide(each) for each in tensors)
    query, key = (_unit(each).repeat_interleave(group_size, 1)[..., None] for each in (query, key))
    beta = inputs.beta_scale * torch.sigmoid(beta_logits)[..., None, None]
    decay = torch.exp(-inputs.a_log.exp() * F.softplus(decay_logits + inputs.dt_bias))[..., None, None]
    starts, reads, writes = (each.tolist() for each in (inputs.query_start_loc, inputs.read_slots, inputs.write_slots))
    for begin, end, read, write in zip(starts[:-1], starts[1:], reads, writes, strict=True):
        if begin == end:
            continue
        state = _wide(inputs.state[read]) if read >= 0 else _wide(torch.zeros_like(inputs.state[0]))
        for token in range(begin, end):
            state = state * decay[token]
            correction = value[token, :, None] - (key[token] * state).sum(1, keepdim=True)
            state = state + beta[token] * key[token] * correction
            y = (query[token] * state).sum(1) * inputs.key_dim**-0.5
            y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + inputs.eps) * inputs.norm_weight
            out[token] = (y * F.silu(gate[token])).to(out.dtype)
        inputs.state[write] = state.to(inputs.state.dtype)
    return out


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + NORM_EPS)
