"""The masks of a step on the device, where kernels read them."""

from collections.abc import Sequence as Items

import torch
from pagewire_kernels.sample import TokenMasks

from pagewire_shard.engine.runner import BatchMasks
from pagewire_shard.slot_tables import Upload


class UploadedMasks:
    """A step's masks, uploaded once for all that look at them."""

    def __init__(self, masks: BatchMasks, upload: Upload) -> None:
        self._masks, self._upload = masks, upload
        self._bits = upload(masks.bits.reshape(-1), torch.int32).view(masks.bits.shape)

    def of(self, rows: Items[int], num_padding: int = 0) -> TokenMasks | None:
        """The masks of some rows of the batch and of as many more that have none; None: none of them has one."""
        places = [self._masks.rows[row] for row in rows]
        if not any(place >= 0 for place in places):
            return None
        return TokenMasks(self._bits, self._upload(places + [-1] * num_padding))
