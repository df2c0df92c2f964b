"""The masks of a batch, as kernels on a GPU take them."""

import torch

from pagewire_kernels.sample.batch import SamplingBatch
from pagewire_kernels.sample.columns import Stage


def masks_of(batch: SamplingBatch) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The bytes of the batch's masks, each row's mask, and how many masks there are; 0: no row has one."""
    if batch.masks is None or Stage.MASK not in batch.stages:
        return batch.columns.allowed.view(torch.uint8), batch.slots, 0
    bits, rows = batch.masks.bits, batch.masks.rows
    if bits.stride(1) != 1 or not rows.is_contiguous():
        raise ValueError("rows must be contiguous in masks.bits, and masks.rows must be")
    return bits.view(torch.uint8), rows, bits.shape[0]
