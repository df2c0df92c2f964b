"""What kernels ask of a GPU before they choose tiles."""

from functools import cache

import torch

_INTERPRETED = (90, 132)
"""Triton's interpreter is taken for an H200."""


@cache
def gpu_traits(device: torch.device) -> tuple[int, int]:
    """(GPU generation as in tuning/, number of multiprocessors)."""
    if device.type != "cuda":
        return _INTERPRETED
    major, minor = torch.cuda.get_device_capability(device)
    # Hopper and data centre Blackwell are alike whatever the minor number; Ampere's other parts have less memory.
    return 10 * major + (0 if major in (9, 10) else minor), torch.cuda.get_device_properties(
        device
    ).multi_processor_count
