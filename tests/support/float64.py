"""The expected result of each kernel, in float64 by plain formulas, independent of the kernels' references."""

import torch

Tensor = torch.Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
    """The RMS norm of x + residual."""
    x = x.double() if residual is None else x.double() + residual.double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The layer norm over the last dimension."""
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double() + bias.double()


def silu_and_mul(x: Tensor) -> Tensor:
    """silu(gate) * up."""
    gate, up = x.double().chunk(2, -1)
    return gate * torch.sigmoid(gate) * up


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, gated: bool) -> Tensor:
    """x @ weight.T + bias; gated: silu of its first half of columns, times the other."""
    y = x.double() @ weight.double().T
    y = y if bias is None else y + bias.double()
    return silu_and_mul(y) if gated else y


def gelu_and_mul(x: Tensor, approximate: str) -> Tensor:
    """gelu(gate) * up."""
    gate, up = x.double().chunk(2, -1)
    return torch.nn.functional.gelu(gate, approximate=approximate) * up


def rotate(x: Tensor, positions: Tensor, cos_sin: Tensor) -> Tensor:
    """x: [num_tokens, num_heads, head_dim], the halves of a head paired."""
    cos, sin = cos_sin[positions].double()[:, None].chunk(2, -1)
    first, second = x.double().chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def attention(
    query: Tensor, keys: Tensor, values: Tensor, scale: float, sliding_window: int = 0, softcap: float = 0.0
) -> Tensor:
    """One sequence, whose last tokens the queries are.

    Args:
        query: [query_len, num_heads, head_dim].
        keys, values: [seq_len, num_kv_heads, head_dim].
    """
    query_len, num_heads, _ = query.shape
    seq_len, num_kv_heads, _ = keys.shape
    distance = (
        torch.arange(seq_len - query_len, seq_len, device=query.device)[:, None]
        - torch.arange(seq_len, device=query.device)[None, :]
    )
    hidden = (distance < 0) | ((distance >= sliding_window) & (sliding_window > 0))
    out = torch.empty(query.shape, dtype=torch.float64, device=query.device)
    group = num_heads // num_kv_heads
    # Head by head: the scores of all at once would not fit.
    for head in range(num_heads):
        scores = query[:, head].double() @ keys[:, head // group].double().T * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        out[:, head] = scores.masked_fill_(hidden, -torch.inf).softmax(-1) @ values[:, head // group].double()
    return out


def mixture(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, experts: Tensor) -> Tensor:
    """The weighted sum of each token's experts.

    Args:
        x: [num_tokens, hidden].
        gate_up: [num_experts, 2 * intermediate, hidden].
        down: [num_experts, hidden, intermediate].
        weights, experts: [num_tokens, top_k].
    """
    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for expert in range(len(gate_up)):
        tokens, places = torch.where(experts == expert)
        y = silu_and_mul(x[tokens].double() @ gate_up[expert].double().T) @ down[expert].double().T
        out.index_add_(0, tokens, y * weights[tokens, places, None].double())
    return out


def relative_error(out: Tensor, expected: Tensor) -> float:
    """||out - expected|| / ||expected||; NaN if anything is NaN."""
    return float((out.double() - expected).norm() / expected.norm())
