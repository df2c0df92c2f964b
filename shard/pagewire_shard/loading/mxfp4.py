"""Reads experts that are stored in MXFP4 (OCP Microscaling Formats, 1.0) as the bfloat16 numbers that they stand for.

A matrix is two tensors: NAME_blocks, [..., rows, columns / 32, 16] uint8, has two elements of four bits (E2M1) in each
byte, the first one in the lower half; NAME_scales, [..., rows, columns / 32] uint8, an exponent for every 32 elements.
"""

import logging
from collections.abc import Iterable, Iterator

import torch

from pagewire_shard.errors import CorruptWeights
from pagewire_shard.loading.checkpoint import CheckpointTensor

logger = logging.getLogger(__name__)

METHOD = "mxfp4"
"""The name of the method in config.json."""
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_BLOCKS, _SCALES = "_blocks", "_scales"
_EXPONENT_BIAS = 127


def dequantized(tensors: Iterable[CheckpointTensor], *, transposed: bool) -> Iterator[CheckpointTensor]:
    """The tensors with one in bfloat16 in place of each pair of blocks and scales, under their common name.

    Args:
        transposed: The matrices are yielded as [..., columns, rows].

    Raises:
        CorruptWeights: a tensor of a pair is missing or does not fit the other one.
    """
    waiting: dict[str, CheckpointTensor] = {}
    num_bytes = 0
    for tensor in tensors:
        name, ending = _split(tensor.name)
        if not ending or tensor.value.dtype is not torch.uint8:
            yield tensor
            continue
        other = waiting.pop(name, None)
        if other is None:
            waiting[name] = tensor
            continue
        blocks, scales = (tensor, other) if ending == _BLOCKS else (other, tensor)
        value = _matrices(blocks, scales)
        num_bytes += value.nbytes
        yield CheckpointTensor(blocks.path, name, value.transpose(-1, -2) if transposed else value)
    for tensor in waiting.values():
        raise CorruptWeights(f"{tensor.path}: tensor {tensor.name!r} has no other half of its MXFP4 weights")
    if num_bytes:
        logger.warning("MXFP4 weights are dequantized to %.1f GB of bfloat16 numbers", num_bytes / 1e9)


def _split(name: str) -> tuple[str, str]:
    """The name without its ending, and the ending; "": it is none of a pair's."""
    for ending in (_BLOCKS, _SCALES):
        if name.endswith(ending):
            return name.removesuffix(ending), ending
    return name, ""


def _matrices(blocks: CheckpointTensor, scales: CheckpointTensor) -> torch.Tensor:
    """[..., rows, columns] bfloat16."""
    if blocks.value.shape != (*scales.value.shape, 16) or blocks.value.ndim < 3:
        raise CorruptWeights(
            f"{blocks.path}: tensor {blocks.name!r} has shape {list(blocks.value.shape)}, which does not fit that of "
            f"{scales.name!r}, {list(scales.value.shape)}"
        )
    *outer, num_groups = scales.value.shape
    out = torch.empty((*outer, num_groups * 32), dtype=torch.bfloat16)
    # One matrix at a time: indices take eight times the room of what they look up.
    pairs = _pairs()
    for matrix, packed, exponents in zip(
        out.flatten(0, -3) if out.ndim > 2 else [out],
        blocks.value.flatten(0, -4) if blocks.value.ndim > 3 else [blocks.value],
        scales.value.flatten(0, -3) if scales.value.ndim > 2 else [scales.value],
        strict=True,
    ):
        elements = pairs[packed.long()].view(*packed.shape[:-1], 32)
        # Powers of two, so that nothing is rounded.
        factors = torch.exp2(exponents.float() - _EXPONENT_BIAS).bfloat16()
        matrix.copy_((elements * factors[..., None]).flatten(-2))
    return out


def _pairs() -> torch.Tensor:
    """[256, 2] bfloat16: the elements of each byte."""
    values = torch.tensor([*MAGNITUDES, *(-each for each in MAGNITUDES)], dtype=torch.bfloat16)
    byte = torch.arange(256)
    return torch.stack((values[byte & 15], values[byte >> 4]), dim=1)
