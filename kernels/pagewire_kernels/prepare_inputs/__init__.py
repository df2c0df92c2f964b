"""Makes a forward pass's inputs from slots and query lengths, entirely on the device."""

from collections.abc import Callable
from functools import cache

from pagewire_kernels.prepare_inputs.inputs import PreparedInputs, StepRows

__all__ = ["PreparedInputs", "StepRows", "prepare_inputs"]


def prepare_inputs(rows: StepRows) -> PreparedInputs:
    """Takes the next query_lens[i] tokens that sequence slots[i] has not computed.

    Nothing is read back, so that it can be part of a CUDA graph.

    reference.py is the definition of correct.
    """
    return _backend(rows.slots.device.type)(rows)


@cache
def _backend(device_type: str) -> Callable[[StepRows], PreparedInputs]:
    if device_type == "cuda":
        from pagewire_kernels.prepare_inputs.triton import prepare_inputs as triton_kernel

        return triton_kernel
    if device_type == "cpu":
        from pagewire_kernels.prepare_inputs.cpu import prepare_inputs as cpu

        return cpu
    from pagewire_kernels.prepare_inputs.reference import prepare_inputs as reference

    return reference
