"""How much a shard takes on at a time: what the configuration says, or what suits the device and the model.

Two things are weighed. More sequences at a time share the reading of the weights, as long as the KV cache holds them.
More tokens in a step cost nothing up to where the device's arithmetic is busy, which a few hundred do on any device;
beyond that, streams that run only wait longer for a step with prompts in it. So a step gets the tokens of a set time.
"""

from dataclasses import dataclass
from typing import Literal

from pagewire_shard.pool_sizes import most_seqs_with_states

MAX_SEQS = {"cuda": 1024, "cpu": 256}
"""Most sequences that are chosen. On a CPU the products of 256 rows keep all cores busy."""
LEAST_SEQS = 256
"""Chosen even where the cache holds fewer of typical length: not all requests are."""
TYPICAL_LEN, SHORT_LEN = 256, 64
"""Tokens that a sequence has in the cache while it runs, its prompt and half of its answer; of a short one."""
STEP_S = {"cuda": 0.125, "cpu": 0.5}
"""Seconds that a step of prompts may keep the streams that run waiting. An H200 reads prompts as fast in steps of 1,024
tokens as of 8,192."""
TOKENS = {"cuda": (512, 8192), "cpu": (64, 512)}
"""Least and most tokens of a step that are chosen."""
BLOCK_SIZE = {"cuda": 64, "cpu": 16}
"""A GPU reads a block of 64 tokens in one piece; a CPU gains nothing from more than a cache line."""
STATE_SHARE = 1 / 64
"""Share of a GPU's memory for the rows of sequences: 4 bytes for each token of the longest. A CPU's rows are pages that
are taken when they are first written."""
STEP_SHARE = 1 / 8
"""Share of the memory beside the weights that steps and graphs are taken to need, until the pool is measured."""

GPU_CLOCK_HZ = 1.7e9
"""Clock of data-centre parts under load."""
GPU_EFFICIENCY = 0.5
"""Share of the peak that whole steps reach."""
CPU_CORE_FLOPS = 100e9
"""A core with AVX-512 in float32; half as much with AVX2."""
_FLOPS_OF_SM = {7: 1024, 8: 1024, 9: 4096, 10: 8192, 12: 1024}
"""Dense 16-bit tensor-core operations of a multiprocessor in a cycle, by major generation; 8.0 (A100) has 2048."""
_NEWER_FLOPS_OF_SM = 4096
_FLOAT32_FLOPS_OF_SM = 256


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What a device offers."""

    kind: Literal["cuda", "cpu"]
    name: str
    memory_bytes: int
    """Memory that weights, activations and KV cache may take together."""
    flops: float
    """Arithmetic operations that it is taken to do in a second of a large step."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model asks for."""

    weight_bytes: int
    kv_bytes_per_token: int
    flops_per_token: float
    """Operations of the layers' matrix products, two for each weight that a token is multiplied with."""
    max_model_len: int
    state_bytes: int = 0
    """Bytes of a slot of recurrent state."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the configuration asks for; None: left open."""

    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int | None = None
    kv_cache_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a shard takes on at a time."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    reasons: tuple[str, ...] = ()
    """The reasons for max_num_seqs, max_num_batched_tokens and block_size, in this order."""

    def line(self) -> str:
        """The three limits, and why each is what it is."""
        values = (self.max_num_seqs, self.max_num_batched_tokens, self.block_size)
        names = ("max_num_seqs", "max_num_batched_tokens", "block_size")
        parts = zip(names, values, self.reasons, strict=True)
        return ", ".join(f"{name} {value} ({reason})" for name, value, reason in parts)


GIVEN = "as given"
_KIND = {"cuda": "GPU", "cpu": "CPU"}


def choose_limits(asked: Asked, device: DeviceFacts, model: ModelFacts) -> Limits:
    """Takes what is asked for, and chooses the rest."""
    block_size, block_reason = asked.block_size, GIVEN
    if block_size is None:
        block_size, block_reason = BLOCK_SIZE[device.kind], f"for a {_KIND[device.kind]}"
    num_tokens, tokens_reason = asked.max_num_batched_tokens, GIVEN
    if num_tokens is None:
        num_tokens, tokens_reason = _choose_num_tokens(asked, device, model)
    num_seqs, seqs_reason = asked.max_num_seqs, GIVEN
    if num_seqs is None:
        num_seqs, seqs_reason = _choose_num_seqs(num_tokens, _pool_bytes(asked, device, model), device, model)
    reasons = (seqs_reason, tokens_reason, block_reason)
    return Limits(model.max_model_len, num_seqs, num_tokens, block_size, reasons)


def _pool_bytes(asked: Asked, device: DeviceFacts, model: ModelFacts) -> int:
    """Bytes that KV cache and recurrent states will take together, about."""
    num_bytes = asked.kv_cache_memory_bytes
    if num_bytes is None:
        num_bytes = round((device.memory_bytes - model.weight_bytes) * (1 - STEP_SHARE))
    return max(num_bytes, 0)


def _choose_num_tokens(asked: Asked, device: DeviceFacts, model: ModelFacts) -> tuple[int, str]:
    """The power of two nearest to the time of a step, and no fewer than the sequences that were asked for."""
    least, most = TOKENS[device.kind]
    tokens_per_s = device.flops / max(model.flops_per_token, 1.0)
    num_tokens = most
    while num_tokens > least and num_tokens > tokens_per_s * STEP_S[device.kind] * 2**0.5:
        num_tokens //= 2
    if asked.max_num_seqs is not None and asked.max_num_seqs > num_tokens:
        return asked.max_num_seqs, "one for each sequence"
    return num_tokens, f"about {num_tokens / tokens_per_s:.2g} s on {device.name}"


def _choose_num_seqs(num_tokens: int, pool_bytes: int, device: DeviceFacts, model: ModelFacts) -> tuple[int, str]:
    """The least of several bounds, which is also the reason."""
    pool_tokens = pool_bytes // max(model.kv_bytes_per_token, 1)
    by_pool = min(max(pool_tokens // TYPICAL_LEN, LEAST_SEQS), pool_tokens // SHORT_LEN)
    bounds = [
        (MAX_SEQS[device.kind], f"the most for a {_KIND[device.kind]}"),
        (by_pool, f"for a KV cache of about {pool_tokens:,} tokens"),
        (num_tokens // 2, "half of a step's tokens"),
    ]
    if device.kind == "cuda":
        num_rows = int(device.memory_bytes * STATE_SHARE) // (4 * model.max_model_len)
        bounds.append((num_rows, f"rows of {model.max_model_len:,} tokens each take memory"))
    if model.state_bytes:
        reason = f"states of {model.state_bytes:,} bytes each"
        bounds.append((most_seqs_with_states(pool_bytes, model.state_bytes), reason))
    num_seqs, reason = min(bounds, key=lambda bound: bound[0])
    # Sizes of graphs and of tiles are multiples of 16.
    return (num_seqs // 16 * 16 if num_seqs > 16 else max(num_seqs, 1)), reason


def gpu_flops(num_multiprocessors: int, capability: tuple[int, int], element_bytes: int) -> float:
    """Operations that a GPU is taken to do in a second, from the size and the generation of its multiprocessors."""
    if element_bytes > 2:
        of_sm = _FLOAT32_FLOPS_OF_SM
    else:
        of_sm = 2048 if capability == (8, 0) else _FLOPS_OF_SM.get(capability[0], _NEWER_FLOPS_OF_SM)
    return num_multiprocessors * of_sm * GPU_CLOCK_HZ * GPU_EFFICIENCY
