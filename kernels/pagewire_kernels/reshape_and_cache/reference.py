"""The definition of reshape_and_cache, on the NHD layout."""

import torch


def reshape_and_cache(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """cache[slot] = new token, for every slot that is not -1."""
    written = slot_mapping >= 0
    slots = slot_mapping[written]
    key_cache.flatten(0, 1)[slots] = key[written]
    value_cache.flatten(0, 1)[slots] = value[written]
