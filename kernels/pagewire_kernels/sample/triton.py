"""sample on a GPU: two launches, whatever the rows ask for.

The first (triton_chunks.py) treats all chunks of all rows side by side and yields the best token of each; the second
(triton_choose.py) takes the best of those, or cuts a filtered row to what its filters keep and draws from that. What
each row needs is decided on the device; only RARE_STAGES are left out of both for a batch that has none.
"""

import torch
import triton

from pagewire_kernels.sample import triton_choose, triton_chunks
from pagewire_kernels.sample.batch import SamplingBatch
from pagewire_kernels.sample.columns import RARE_STAGES
from pagewire_kernels.sample.triton_choose import LISTED, sample_choose_kernel
from pagewire_kernels.sample.triton_chunks import CHUNK, GROUP, sample_chunk_kernel
from pagewire_kernels.sample.triton_penalties import TOKENS_AT_ONCE


def sample(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """See the package."""
    sequences, columns = batch.sequences, batch.columns
    token_ids, stop_token_ids = sequences.token_ids, sequences.stop_token_ids
    if logits.stride(1) != 1 or token_ids.stride(1) != 1 or stop_token_ids.stride(1) != 1:
        raise ValueError("rows must be contiguous in logits, token_ids and stop_token_ids")
    num_tokens = sequences.ints[:, sequences.columns.num_tokens]
    num_rows, vocab_size = logits.shape
    device = logits.device
    num_chunks, num_groups = triton.cdiv(vocab_size, CHUNK), triton.cdiv(vocab_size, GROUP)
    rare_stages = int(batch.stages & RARE_STAGES)
    best = torch.empty((num_rows, num_chunks), dtype=torch.int64, device=device)
    group_max = torch.empty((num_rows, num_groups), dtype=torch.float32, device=device)
    chunk_max, chunk_mass = (torch.empty(best.shape, dtype=torch.float32, device=device) for _ in range(2))
    # Touched only in rows whose logits are changed: scratch first, then the logits if the row is filtered.
    rewritten = torch.empty((num_rows, vocab_size), dtype=torch.float32, device=device)
    listed = torch.empty((num_rows, num_groups), dtype=torch.int32, device=device)
    sampled = torch.empty(num_rows, dtype=torch.int64, device=device)
    sample_chunk_kernel[(num_chunks, num_rows)](
        logits, batch.slots, columns.floats, columns.ints, num_tokens, token_ids, stop_token_ids,
        columns.lists, best, group_max, chunk_max, chunk_mass, rewritten,
        rewritten.view(torch.int32), logits.stride(0), num_tokens.stride(0), token_ids.stride(0),
        stop_token_ids.stride(0), STAGES=rare_stages, VOCAB_SIZE=vocab_size, NUM_STOPS=stop_token_ids.shape[1],
        CHUNK=CHUNK, GROUP=GROUP, TOKENS_AT_ONCE=TOKENS_AT_ONCE, num_warps=triton_chunks.NUM_WARPS,
    )  # fmt: skip
    sample_choose_kernel[(num_rows,)](
        logits, batch.slots, columns.floats, columns.ints, num_tokens, best, group_max, chunk_max, chunk_mass,
        rewritten, listed, sampled, logits.stride(0), num_tokens.stride(0), STAGES=rare_stages,
        VOCAB_SIZE=vocab_size, NUM_CHUNKS=num_chunks, CHUNK_BLOCK=triton.next_power_of_2(num_chunks),
        NUM_GROUPS=num_groups, GROUP_BLOCK=triton.next_power_of_2(num_groups), GROUP=GROUP, LISTED=LISTED,
        num_warps=triton_choose.NUM_WARPS,
    )  # fmt: skip
    return sampled


def _signature(logits_kind: str) -> dict[str, str]:
    partial = ("floats", "group_max", "chunk_max", "chunk_mass", "rewritten")
    int64 = ("slots", "ints", "num_tokens", "best", "sampled")
    int32 = ("token_ids", "stop_token_ids", "lists", "list", "counts")
    strides = ("stride_logits", "stride_num_tokens", "stride_tokens", "stride_stops")
    signature = dict.fromkeys((f"{name}_ptr" for name in partial), "*fp32")
    signature |= dict.fromkeys((f"{name}_ptr" for name in int64), "*i64")
    signature |= dict.fromkeys((f"{name}_ptr" for name in int32), "*i32")
    return signature | dict.fromkeys(strides, "i32") | {"logits_ptr": logits_kind}
