"""rotary_and_cache on a CPU, float32, on the CPU layout of kv_cache.py; the norms of heads are a separate pass."""

from pagewire_kernels.cpu.rotary_worker import angle_arguments, run, token_stride
from pagewire_kernels.rms_norm import rms_norm
from pagewire_kernels.rotary_and_cache.inputs import RotaryInputs


def rotary_and_cache(inputs: RotaryInputs) -> None:
    """See the package."""
    query, key, value, key_cache = inputs.query, inputs.key, inputs.value, inputs.key_cache
    if inputs.q_norm_weight is not None and inputs.k_norm_weight is not None:
        query.copy_(rms_norm(query, inputs.q_norm_weight, inputs.eps))
        key.copy_(rms_norm(key, inputs.k_norm_weight, inputs.eps))
    num_tokens, num_heads, head_dim = query.shape
    tensors = tuple(number for x in (query, key, value) for number in (x.data_ptr(), token_stride(x)))
    counts = (head_dim, num_heads, key.shape[1], key_cache.shape[3])
    caches = (key_cache.data_ptr(), inputs.value_cache.data_ptr(), inputs.slot_mapping.data_ptr())
    angles = angle_arguments(inputs.positions, inputs.cos_sin_cache, inputs.interleaved)
    run(num_tokens, counts, tensors, angles, caches)
