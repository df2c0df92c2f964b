"""The slopes of ALiBi (arXiv:2108.12409)."""


def alibi_slopes(num_heads: int, max_bias: float = 8.0) -> tuple[float, ...]:
    """The slope of each head: 2 ** -max_bias for the last of a power of two of heads, and evenly spaced exponents.

    Where the number of heads is no power of two, the slopes are those of the next larger one, every second first.
    """
    power = 1 << (num_heads - 1).bit_length()
    slopes = [2.0 ** (-max_bias * (i + 1) / power) for i in range(power)]
    return tuple(slopes if power == num_heads else (slopes[1::2] + slopes[::2])[:num_heads])
