"""The definition of rotary_and_cache, on the NHD layout."""

import torch

from pagewire_kernels.reshape_and_cache.reference import reshape_and_cache
from pagewire_kernels.rms_norm.reference import rms_norm
from pagewire_kernels.rotary.reference import apply_rotary
from pagewire_kernels.rotary_and_cache.inputs import RotaryInputs


def rotary_and_cache(inputs: RotaryInputs) -> None:
    """rms_norm of each head, apply_rotary, then reshape_and_cache."""
    if inputs.q_norm_weight is not None and inputs.k_norm_weight is not None:
        for heads, weight in ((inputs.query, inputs.q_norm_weight), (inputs.key, inputs.k_norm_weight)):
            normalised = rms_norm(heads, weight, inputs.eps)
            assert isinstance(normalised, torch.Tensor), "a pair only with a residual"
            heads.copy_(normalised)
    apply_rotary(inputs.query, inputs.key, inputs.positions, inputs.cos_sin_cache, inputs.interleaved)
    reshape_and_cache(inputs.key, inputs.value, inputs.key_cache, inputs.value_cache, inputs.slot_mapping)
