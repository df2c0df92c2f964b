"""Rotary embedding, the norm of each head before it, and the cache write behind it, in one pass over query, key and
value."""

from collections.abc import Callable
from functools import cache

from pagewire_kernels.rotary_and_cache import reference
from pagewire_kernels.rotary_and_cache.inputs import RotaryInputs

__all__ = ["RotaryInputs", "rotary_and_cache"]


def rotary_and_cache(inputs: RotaryInputs) -> None:
    """Norms and rotates query in place, and writes the normed and rotated key and the value into their slots.

    The composition of rms_norm of each head (if there are weights), apply_rotary and reshape_and_cache.

    Raises:
        ValueError: one norm weight without the other, or a layout that the device's kernel does not take.
    """
    if (inputs.q_norm_weight is None) != (inputs.k_norm_weight is None):
        raise ValueError("the norm weights of query and key come together")
    _backend(inputs.query.device.type)(inputs)


@cache
def _backend(device_type: str) -> Callable[[RotaryInputs], None]:
    if device_type == "cpu":
        from pagewire_kernels.rotary_and_cache import cpu

        return cpu.rotary_and_cache
    if device_type == "cuda":
        from pagewire_kernels.rotary_and_cache.triton import rotary_and_cache as triton_kernel

        return triton_kernel
    return reference.rotary_and_cache
