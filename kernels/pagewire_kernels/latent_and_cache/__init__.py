"""What multi-head latent attention does before it attends: norms latents, rotates, and writes to the cache."""

from collections.abc import Callable
from functools import cache

from pagewire_kernels.latent_and_cache import reference
from pagewire_kernels.latent_and_cache.inputs import LatentRows

__all__ = ["LatentRows", "latent_and_cache"]


def latent_and_cache(rows: LatentRows) -> None:
    """Rotates the queries in place, and writes each token's normed latent and rotated key into its slot.

    Source: DeepSeek-V2, arXiv:2405.04434, section 2.1; reference.py is the definition of correct.
    """
    _backend(rows.query_rope.device.type)(rows)


@cache
def _backend(device_type: str) -> Callable[[LatentRows], None]:
    if device_type == "cpu":
        from pagewire_kernels.latent_and_cache import cpu

        return cpu.latent_and_cache
    if device_type == "cuda":
        from pagewire_kernels.latent_and_cache.triton import latent_and_cache as triton_kernel

        return triton_kernel
    return reference.latent_and_cache
