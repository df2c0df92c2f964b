"""latent_and_cache on a CPU, float32: three passes over what is small beside the projections."""

from pagewire_kernels.latent_and_cache.inputs import LatentRows
from pagewire_kernels.rms_norm import rms_norm
from pagewire_kernels.rotary import apply_rotary


def latent_and_cache(rows: LatentRows) -> None:
    """See the package."""
    latent_dim = rows.norm_weight.shape[0]
    latent = rows.latent[:, :latent_dim]
    latent.copy_(rms_norm(latent, rows.norm_weight, rows.eps))
    key = rows.latent[:, latent_dim:].unsqueeze(1)
    apply_rotary(rows.query_rope, key, rows.positions, rows.cos_sin_cache, rows.interleaved)
    written = rows.slot_mapping >= 0
    rows.cache.flatten(0, 1)[rows.slot_mapping[written]] = rows.latent[written]
