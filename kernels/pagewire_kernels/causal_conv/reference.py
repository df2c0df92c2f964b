"""The definition of causal_conv."""

import torch
import torch.nn.functional as F

from pagewire_kernels.causal_conv.inputs import ConvInputs


def causal_conv(inputs: ConvInputs) -> torch.Tensor:
    """Sequence by sequence, in float32."""
    x, state, out = inputs.x, inputs.state, torch.zeros_like(inputs.x, memory_format=torch.contiguous_format)
    starts, weight = inputs.query_start_loc.tolist(), inputs.weight.float()
    bias = None if inputs.bias is None else inputs.bias.float()
    for row, (read, write) in enumerate(zip(inputs.read_slots.tolist(), inputs.write_slots.tolist(), strict=True)):
        start, end = starts[row : row + 2]
        if start == end:
            continue
        before = state[read] if read >= 0 else torch.zeros_like(state[write])
        window = torch.cat((before, x[start:end].to(state.dtype)))  # [width - 1 + num_new, channels]
        y = F.conv1d(window.float().t(), weight[:, None], bias, groups=len(weight)).t()
        out[start:end] = F.silu(y) if inputs.activation else y
        state[write] = window[end - start :]
    return out
