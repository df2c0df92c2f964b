"""The largest logits of rows in any number, on any device: what kernels that keep a few in registers do not serve."""

import torch

_KEYS_AT_ONCE = 1 << 23
"""Keys that there is memory for at a time, 64 MiB; more where one row has more."""
_LOW_BITS = 0x7FFFFFFF


def largest(logits: torch.Tensor, num_top: int) -> torch.Tensor:
    """The tokens of the largest logits of each row, best first, of equals the lower id first.

    Args:
        logits: [num_rows, vocab_size] float32, bfloat16 or float16, vocab_size below 2**31.
        num_top: At most vocab_size.

    Returns:
        [num_rows, num_top] int64; of rows with NaN in any order.
    """
    num_rows, vocab_size = logits.shape
    rows_at_once = max(1, _KEYS_AT_ONCE // vocab_size)
    token_ids = torch.empty((num_rows, num_top), dtype=torch.int64, device=logits.device)
    for first in range(0, num_rows, rows_at_once):
        rows = slice(first, first + rows_at_once)
        token_ids[rows] = _LOW_BITS - (_keys(logits[rows]).topk(num_top, dim=-1).values & _LOW_BITS)
    return token_ids


def _keys(logits: torch.Tensor) -> torch.Tensor:
    """int64, no two of a row equal: in the order of the logits, of equals the lower id is larger."""
    bits = logits.float().view(torch.int32)
    sign = bits >> 31
    order = (bits ^ (sign & _LOW_BITS)) - sign  # Zeros of both signs are equal.
    token = torch.arange(logits.shape[1], device=logits.device)
    return order.to(torch.int64) << 32 | (_LOW_BITS - token)
