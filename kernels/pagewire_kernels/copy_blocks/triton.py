"""copy_blocks on a GPU: all layers in one launch."""

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_UNIT_BYTES = 16
"""Bytes that a thread loads at once. Addresses and block sizes are multiples of it."""
_WORDS = 4096
"""32-bit words that a program copies: with 4 warps, eight independent 16-byte loads a thread."""
_NUM_WARPS = 4


@triton.jit
def copy_blocks_kernel(
    base_ptr,
    offsets_ptr,
    source_ids_ptr,
    target_ids_ptr,
    UNITS_PER_BLOCK: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Grid: (num_copies, num_caches, cdiv(words of a block, WORDS)); one program copies WORDS words of one block of
    one cache. A unit is four words; cache c starts offsets[c] units after base."""
    copy = tl.program_id(0)
    cache = base_ptr + tl.load(offsets_ptr + tl.program_id(1)) * 4
    source = cache + tl.load(source_ids_ptr + copy) * (UNITS_PER_BLOCK * 4)
    target = cache + tl.load(target_ids_ptr + copy) * (UNITS_PER_BLOCK * 4)
    word = tl.program_id(2) * WORDS + tl.arange(0, WORDS)  # [WORDS]
    mask = word < UNITS_PER_BLOCK * 4
    tl.store(target + word, tl.load(source + word, mask=mask), mask=mask)


@lru_cache(maxsize=8)
def _offset_table(addresses: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Returns [num_caches] int64, the units from the first cache to each; built once for a set of caches."""
    return torch.tensor([(address - addresses[0]) // _UNIT_BYTES for address in addresses], device=device)


def copy_blocks(caches: Sequence[tuple[torch.Tensor, ...]], source_ids: torch.Tensor, target_ids: torch.Tensor) -> None:
    """See the package; a launch for each size of blocks."""
    by_size: dict[int, list[torch.Tensor]] = {}
    for cache in (cache for layer in caches for cache in layer):
        if not cache.is_contiguous():
            raise ValueError("the caches must be contiguous")
        by_size.setdefault(cache[0].nbytes, []).append(cache)
    for block_bytes, tensors in by_size.items():
        _copy(tensors, block_bytes, source_ids, target_ids)


def _copy(tensors: list[torch.Tensor], block_bytes: int, source_ids: torch.Tensor, target_ids: torch.Tensor) -> None:
    addresses = tuple(cache.data_ptr() for cache in tensors)
    if block_bytes % _UNIT_BYTES or any(address % _UNIT_BYTES for address in addresses):
        raise ValueError(f"blocks must be aligned to {_UNIT_BYTES} bytes")
    num_copies = source_ids.shape[0]
    if num_copies == 0:
        return
    copy_blocks_kernel[(num_copies, len(tensors), triton.cdiv(block_bytes // 4, _WORDS))](
        tensors[0].view(-1).view(torch.int32),
        _offset_table(addresses, tensors[0].device),
        source_ids.contiguous(),
        target_ids.contiguous(),
        UNITS_PER_BLOCK=block_bytes // _UNIT_BYTES,
        WORDS=_WORDS,
        num_warps=_NUM_WARPS,
    )
