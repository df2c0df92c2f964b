"""sample on a GPU: two launches, whatever the rows ask for.

The first (triton_chunks.py) treats all chunks of all rows side by side and yields the best token of each; the second
(triton_choose.py) takes the best of those, or cuts a filtered row to what its filters keep and draws from that. What
each row needs is decided on the device.
"""

import torch
import triton

from pagewire_kernels.sample import triton_choose, triton_chunks
from pagewire_kernels.sample.batch import SamplingBatch
from pagewire_kernels.sample.triton_choose import LISTED, sample_choose_kernel
from pagewire_kernels.sample.triton_chunks import CHUNK, GROUP, TOKENS_AT_ONCE, sample_chunk_kernel


def sample(logits: torch.Tensor, params: SamplingBatch) -> torch.Tensor:
    """See the package."""
    if logits.stride(1) != 1 or params.token_ids.stride(1) != 1 or params.stop_token_ids.stride(1) != 1:
        raise ValueError("rows must be contiguous in logits, token_ids and stop_token_ids")
    num_rows, vocab_size = logits.shape
    device = logits.device
    num_chunks, num_groups = triton.cdiv(vocab_size, CHUNK), triton.cdiv(vocab_size, GROUP)
    floats, stride_floats = _with_one_stride(
        params.temperature, params.top_p, params.min_p, params.presence_penalty, params.frequency_penalty,
        params.repetition_penalty,
    )  # fmt: skip
    ints, stride_ints = _with_one_stride(
        params.top_k, params.seeds, params.positions, params.num_prompt_tokens, params.num_tokens
    )  # fmt: skip
    mask_stop = params.mask_stop.contiguous()
    best = torch.empty((num_rows, num_chunks), dtype=torch.int64, device=device)
    group_max = torch.empty((num_rows, num_groups), dtype=torch.float32, device=device)
    chunk_max, chunk_mass = (torch.empty(best.shape, dtype=torch.float32, device=device) for _ in range(2))
    # Touched only in rows with penalties or masked stop tokens: first counts, then logits if the row is filtered.
    rewritten = torch.empty((num_rows, vocab_size), dtype=torch.float32, device=device)
    listed = torch.empty((num_rows, num_groups), dtype=torch.int32, device=device)
    sampled = torch.empty(num_rows, dtype=torch.int64, device=device)
    sample_chunk_kernel[(num_chunks, num_rows)](
        logits, *floats, *ints, params.token_ids, params.slots, params.stop_token_ids, mask_stop, best, group_max,
        chunk_max, chunk_mass, rewritten, rewritten.view(torch.int32), logits.stride(0), stride_floats, stride_ints,
        params.token_ids.stride(0), params.stop_token_ids.stride(0), BY_SLOT=params.by_slot, VOCAB_SIZE=vocab_size,
        NUM_STOPS=params.stop_token_ids.shape[1], CHUNK=CHUNK, GROUP=GROUP, TOKENS_AT_ONCE=TOKENS_AT_ONCE,
        num_warps=triton_chunks.NUM_WARPS,
    )  # fmt: skip
    sample_choose_kernel[(num_rows,)](
        logits, *floats, *ints[:3], params.slots, mask_stop, best, group_max, chunk_max, chunk_mass, rewritten,
        listed, sampled, logits.stride(0), stride_floats, stride_ints, BY_SLOT=params.by_slot, VOCAB_SIZE=vocab_size,
        NUM_CHUNKS=num_chunks, CHUNK_BLOCK=triton.next_power_of_2(num_chunks), NUM_GROUPS=num_groups,
        GROUP_BLOCK=triton.next_power_of_2(num_groups), GROUP=GROUP, LISTED=LISTED, num_warps=triton_choose.NUM_WARPS,
    )  # fmt: skip
    return sampled


def _with_one_stride(*tensors: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], int]:
    """The tensors as they are if they have one stride, as columns of one table do; else contiguous."""
    if len({tensor.stride(0) for tensor in tensors}) > 1:
        tensors = tuple(tensor.contiguous() for tensor in tensors)
    return tensors, tensors[0].stride(0)


def _signature(int_kind: str, logits_kind: str) -> dict[str, str]:
    floats = ("temperature", "top_p", "min_p", "presence", "frequency", "repetition")
    partial = ("group_max", "chunk_max", "chunk_mass", "rewritten")
    ints = ("top_k", "num_prompt", "num_tokens")
    int64 = ("seeds", "positions", "slots", "best", "sampled")
    int32 = ("token_ids", "stop_token_ids", "list", "counts")
    strides = ("stride_logits", "stride_floats", "stride_ints", "stride_tokens", "stride_stops")
    signature = dict.fromkeys((f"{name}_ptr" for name in (*floats, *partial)), "*fp32")
    signature |= dict.fromkeys((f"{name}_ptr" for name in ints), int_kind)
    signature |= dict.fromkeys((f"{name}_ptr" for name in int64), "*i64")
    signature |= dict.fromkeys((f"{name}_ptr" for name in int32), "*i32")
    return signature | dict.fromkeys(strides, "i32") | {"logits_ptr": logits_kind, "mask_stop_ptr": "*i1"}
