"""Programmatic dependent launch: a kernel's programs start while the kernel before it still runs.

A decode step of one sequence is some 260 kernels of a few microseconds each. Between two of them a GPU idles: the last
programs of one end, and the first of the next are placed, load their arguments and wait for memory. From compute
capability 9.0 on, a kernel can be launched so that its programs are placed as soon as all programs of the kernel before
have called release_next or ended, and wait there, or read ahead what no kernel writes, until that kernel has ended.

Two rules make that safe; a kernel that is launched with launch_options() keeps both:

1. Every program calls wait_for_previous before it reads what a kernel before it may have written, and before it writes
   anything. Weights alone may be read earlier.
2. Every program calls wait_for_previous unconditionally, so that no kernel ends before the one before it: waiting for a
   kernel is waiting for all kernels before it.

A third rule makes it fast. release_next is called at once by kernels of few or short programs, and by those that have
several programs for each place on the device: the next kernel's programs fill the places that the last ones leave.
Kernels whose programs are all resident call it when these have read what they need: programs that are placed in the
gaps between others crowd on some multiprocessors, and a kernel takes as long as its fullest one.

Source: CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization".
"""

from functools import cache

import torch
import triton
import triton.language as tl

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

LEAST_GENERATION = 90
"""Compute capability, times ten, from which on devices can do this."""


@triton.jit
def wait_for_previous(PDL: tl.constexpr):
    """Waits until the previous kernel has ended and its writes are visible."""
    if PDL:
        tl.extra.cuda.gdc_wait()


@triton.jit
def release_next(PDL: tl.constexpr):
    """Lets the next kernel's programs be placed, once all programs of this one have called it or ended."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@cache
def launch_options(device: torch.device) -> dict[str, bool]:
    """Returns launch keywords for this device, for a kernel that has a constant PDL and keeps the rules above."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= divmod(LEAST_GENERATION, 10):
        return {"PDL": True, "launch_pdl": True}
    return {"PDL": False}
