"""The definition of latent_and_cache."""

import torch

from pagewire_kernels.latent_and_cache.inputs import LatentRows
from pagewire_kernels.rms_norm.reference import rms_norm
from pagewire_kernels.rotary.reference import apply_rotary


def latent_and_cache(rows: LatentRows) -> None:
    """rms_norm of the latent, apply_rotary, then cache[slot] = both, for every slot that is not -1."""
    latent_dim = rows.norm_weight.shape[0]
    normed = rms_norm(rows.latent[:, :latent_dim], rows.norm_weight, rows.eps)
    assert isinstance(normed, torch.Tensor), "a pair only with a residual"
    key = rows.latent[:, None, latent_dim:]
    apply_rotary(rows.query_rope, key, rows.positions, rows.cos_sin_cache, rows.interleaved)
    written = rows.slot_mapping >= 0
    rows.cache.flatten(0, 1)[rows.slot_mapping[written]] = torch.cat((normed, key[:, 0]), dim=1)[written]
