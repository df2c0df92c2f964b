"""Traits of a GPU by which kernels choose tiles."""

from functools import cache

import torch

_INTERPRETED = (90, 132)
"""The traits of an H200, which stand for Triton's interpreter."""


@cache
def gpu_traits(device: torch.device) -> tuple[int, int]:
    """Returns the GPU generation, as in tuning/, and the number of multiprocessors."""
    if device.type != "cuda":
        return _INTERPRETED
    major, minor = torch.cuda.get_device_capability(device)
    # Hopper and data centre Blackwell are alike whatever the minor number; Ampere's other parts have less memory.
    return 10 * major + (0 if major in (9, 10) else minor), torch.cuda.get_device_properties(
        device
    ).multi_processor_count
