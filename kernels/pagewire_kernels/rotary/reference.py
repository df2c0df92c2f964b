"""The definition of apply_rotary."""

import torch


def apply_rotary(
    query: torch.Tensor,
    key: torch.Tensor,
    positions: torch.Tensor,
    cos_sin_cache: torch.Tensor,
    interleaved: bool = False,
) -> None:
    """(x, y) -> (x cos - y sin, y cos + x sin) for each pair, computed in float32, in place."""
    cos, sin = cos_sin_cache[positions].float().unsqueeze(1).chunk(2, dim=-1)
    half = cos.shape[-1]
    for tensor in (query, key):
        if interleaved:
            first, second = tensor[..., 0 : 2 * half : 2], tensor[..., 1 : 2 * half : 2]
        else:
            first, second = tensor[..., :half], tensor[..., half : 2 * half]
        x, y = first.float(), second.float()
        # Both are computed before either is written: x and y are views when the tensor is float32.
        rotated_first, rotated_second = x * cos - y * sin, y * cos + x * sin
        first.copy_(rotated_first)
        second.copy_(rotated_second)
