"""paged_attention on a GPU, on the NHD layout: decodes of a batch and its prefills, each in launches of their own."""

import logging
from functools import cache
from types import ModuleType

import torch
from triton import knobs

from pagewire_kernels.gpu.traits import gpu_traits
from pagewire_kernels.paged_attention.inputs import AttentionInputs
from pagewire_kernels.paged_attention.triton_decode import attend_decodes
from pagewire_kernels.paged_attention.triton_prefill import attend_prefills

_log = logging.getLogger(__name__)


def paged_attention(inputs: AttentionInputs) -> torch.Tensor:
    """See the package. Launches depend on shapes and plain numbers alone: they can be captured in a graph."""
    inputs.check()
    query, seq_lens, num_decodes = inputs.query, inputs.seq_lens, inputs.num_decodes
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    num_tokens, num_seqs = query.shape[0], seq_lens.shape[0]
    if num_tokens == 0 or num_seqs == 0:
        return out
    if inputs.max_query_len == 1:
        num_decodes = num_seqs
    elif inputs.row_counts is not None:
        _attend_any(inputs, out)
        return out
    if not 0 <= num_decodes <= min(num_seqs, num_tokens):
        raise ValueError(f"{num_decodes} decodes in a batch of {num_seqs} sequences and {num_tokens} tokens")
    if num_decodes:
        attend_decodes(inputs, out, num_decodes)
    if num_decodes < num_seqs:
        _attend_prefills(inputs, out, num_decodes)
    return out


def _attend_any(inputs: AttentionInputs, out: torch.Tensor) -> None:
    """Which sequences are decodes is known on the device alone: both launches are made for as many as there can be."""
    attend_decodes(inputs, out, min(inputs.seq_lens.shape[0], inputs.query.shape[0]))
    _attend_prefills(inputs, out, 0)


def _attend_prefills(inputs: AttentionInputs, out: torch.Tensor, first_seq: int) -> None:
    hopper = _hopper_prefill(inputs.query.device)
    if hopper is not None and hopper.serves(inputs):
        hopper.attend_prefills(inputs, out, first_seq)
    else:
        attend_prefills(inputs, out, first_seq)


@cache
def _hopper_prefill(device: torch.device) -> ModuleType | None:
    """Returns the module of the Hopper kernel if the device is a Hopper GPU and the installed Triton has its Gluon.

    The interpreter does not know Gluon.
    """
    if knobs.runtime.interpret or device.type != "cuda" or gpu_traits(device)[0] != 90:
        return None
    try:
        from pagewire_kernels.paged_attention import hopper_prefill
    except (ImportError, AttributeError) as error:
        _log.warning("prefill attention without Gluon, which is slower: %s", error)
        return None
    return hopper_prefill
