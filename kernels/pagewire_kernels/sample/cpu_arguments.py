"""What a batch's rows are sampled by, as workers on a CPU take it: addresses, and sizes in elements."""

import torch

from pagewire_kernels.sample.batch import SamplingBatch
from pagewire_kernels.sample.columns import Stage


def batch_arguments(batch: SamplingBatch) -> tuple[torch.Tensor, tuple[int, ...]]:
    """The rows' slots, contiguous, which the caller must keep, and the arguments: floats, ints, lists; allowed and its
    stride; bad words; num_tokens and its stride; token ids and theirs; stop tokens and theirs; the stages; the masks,
    their stride and each row's mask, all 0 without masks."""
    sequences, columns = batch.sequences, batch.columns
    num_tokens = sequences.ints[:, sequences.columns.num_tokens]
    masks = (0, 0, 0)
    if batch.masks is not None and Stage.MASK in batch.stages:
        bits, rows = batch.masks.bits, batch.masks.rows
        if bits.stride(1) != 1 or not rows.is_contiguous():
            raise ValueError("rows must be contiguous in masks.bits, and masks.rows must be")
        masks = (bits.data_ptr(), bits.stride(0), rows.data_ptr())
    arguments = (
        columns.floats.data_ptr(),
        columns.ints.data_ptr(),
        columns.lists.data_ptr(),
        columns.allowed.data_ptr(),
        columns.allowed.stride(0),
        columns.bad_words.data_ptr(),
        num_tokens.data_ptr(),
        num_tokens.stride(0),
        sequences.token_ids.data_ptr(),
        sequences.token_ids.stride(0),
        sequences.stop_token_ids.data_ptr(),
        sequences.stop_token_ids.stride(0),
        int(batch.stages),
        *masks,
    )
    return batch.slots.contiguous(), arguments
