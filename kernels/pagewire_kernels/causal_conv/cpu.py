"""causal_conv on a CPU: all decodes at once, then one sequence after the other.

Products and sums are operations of their own, so that a token's bits do not depend on what else is in the batch.
"""

import torch

from pagewire_kernels.causal_conv.inputs import ConvInputs
from pagewire_kernels.cpu.elementwise import silu_


def causal_conv(inputs: ConvInputs) -> torch.Tensor:
    """See the package."""
    taps = inputs.weight.float().t().contiguous()  # [width, channels]
    bias = None if inputs.bias is None else inputs.bias.float()
    out = _decodes(inputs, taps, bias) if inputs.max_query_len == 1 else _sequences(inputs, taps, bias)
    if inputs.activation is not None:
        silu_(out)
    return out.to(inputs.x.dtype)


def _decodes(inputs: ConvInputs, taps: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    state, read_slots = inputs.state, inputs.read_slots
    x = inputs.x[: len(read_slots)]
    before = state.index_select(0, read_slots.clamp(min=0))  # [num_seqs, width - 1, channels]
    begins = read_slots < 0
    if begins.any():
        before[begins] = 0
    whole = torch.zeros(inputs.x.shape)
    out = torch.mul(x, taps[-1], out=whole[: len(x)])
    for tap, row in zip(taps[:-1], before.unbind(1), strict=True):
        out += row * tap
    if bias is not None:
        out += bias
    state[inputs.write_slots.long()] = torch.cat((before[:, 1:], x[:, None].to(state.dtype)), dim=1)
    return whole


def _sequences(inputs: ConvInputs, taps: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    x, state, num_before = inputs.x, inputs.state, len(taps) - 1
    out = torch.zeros(x.shape)
    starts = inputs.query_start_loc.tolist()
    for row, (read, write) in enumerate(zip(inputs.read_slots.tolist(), inputs.write_slots.tolist(), strict=True)):
        start, end = starts[row], starts[row + 1]
        num_new = end - start
        if num_new == 0:
            continue
        before = state[read] if read >= 0 else state.new_zeros(state.shape[1:])
        window = torch.cat((before, x[start:end].to(state.dtype)))
        y = torch.mul(window[num_before:], taps[-1], out=out[start:end])
        for tap in range(num_before):
            y += window[tap : tap + num_new] * taps[tap]
        if bias is not None:
            y += bias
        state[write] = window[num_new:]
    return out
