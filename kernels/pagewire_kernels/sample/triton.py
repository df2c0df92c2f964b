"""sample on a GPU: four launches, whatever the rows ask for.

The first (triton_chunks.py) looks at all tokens of all rows side by side and yields the best of each segment. The
second and third (triton_weigh.py) work for rows with top_p only. The last (triton_choose.py) takes the best token of
each row, or the best that its filters keep. What each row needs is decided on the device; only RARE_STAGES, all
together, are left out of all for a batch that needs none.
"""

import torch
import triton

from pagewire_kernels.sample import triton_choose, triton_chunks, triton_weigh
from pagewire_kernels.sample.batch import SamplingBatch
from pagewire_kernels.sample.columns import RARE_STAGES
from pagewire_kernels.sample.triton_choose import sample_choose_kernel
from pagewire_kernels.sample.triton_chunks import CHUNK, SEGMENT, sample_chunk_kernel
from pagewire_kernels.sample.triton_masks import masks_of
from pagewire_kernels.sample.triton_penalties import TOKENS_AT_ONCE
from pagewire_kernels.sample.triton_top_k import CANDIDATES, GATHERED, LISTED, group_size
from pagewire_kernels.sample.triton_weigh import NUM_BOUNDS, SPLITS, TILE, sample_bounds_kernel, sample_weigh_kernel

CHUNKS_OF_MANY_ROWS = 4
"""Chunks that a program treats one after the other if programs of one would fill the device several times."""
MANY_ROWS = 32


def sample(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """See the package."""
    sequences, columns = batch.sequences, batch.columns
    token_ids, stop_token_ids = sequences.token_ids, sequences.stop_token_ids
    if logits.stride(1) != 1 or token_ids.stride(1) != 1 or stop_token_ids.stride(1) != 1:
        raise ValueError("rows must be contiguous in logits, token_ids and stop_token_ids")
    num_tokens = sequences.ints[:, sequences.columns.num_tokens]
    num_rows, vocab_size = logits.shape
    sizes = _sizes(vocab_size)
    device = logits.device
    best = torch.empty((num_rows, sizes["NUM_SEGMENTS"]), dtype=torch.int64, device=device)
    best_logit, segment_max = (torch.empty(best.shape, device=device) for _ in range(2))
    group_max = torch.empty((num_rows, sizes["NUM_GROUPS"]), device=device)
    # Touched only in rows whose logits are changed: scratch first, then the logits if the row is filtered.
    rewritten = torch.empty((num_rows, vocab_size), device=device)
    bounds = torch.empty((num_rows, NUM_BOUNDS), device=device)
    tops = torch.empty(num_rows, device=device)
    masses = torch.empty((num_rows, SPLITS, NUM_BOUNDS), dtype=torch.int64, device=device)
    listed = torch.empty((num_rows, sizes["NUM_SEGMENTS"] + sizes["LISTED"]), dtype=torch.int32, device=device)
    candidate_logits = torch.empty((num_rows, sizes["GATHERED"] + sizes["CANDIDATES"]), device=device)
    candidate_tokens = torch.empty(candidate_logits.shape, dtype=torch.int32, device=device)
    sampled = torch.empty(num_rows, dtype=torch.int64, device=device)
    is_rewritten = torch.empty(num_rows, dtype=torch.int32, device=device)
    tables = (batch.slots, columns.floats, columns.ints, num_tokens)
    masks, mask_rows, num_masks = masks_of(batch)
    chunks_at_once = CHUNKS_OF_MANY_ROWS if num_rows >= MANY_ROWS else 1
    sample_chunk_kernel[(triton.cdiv(vocab_size, CHUNK * chunks_at_once), num_rows)](
        logits, *tables, token_ids, stop_token_ids, columns.lists, masks, mask_rows, columns.allowed.view(torch.uint8),
        columns.bad_words, best, best_logit, segment_max, group_max, rewritten, rewritten.view(torch.int32),
        is_rewritten, chunks_at_once, num_masks, logits.stride(0), num_tokens.stride(0), token_ids.stride(0),
        stop_token_ids.stride(0), masks.stride(0), RARE=bool(batch.stages & RARE_STAGES),
        **_of(sample_chunk_kernel, sizes), NUM_STOPS=stop_token_ids.shape[1], TOKENS_AT_ONCE=TOKENS_AT_ONCE,
        num_warps=triton_chunks.NUM_WARPS,
    )  # fmt: skip
    sample_bounds_kernel[(num_rows,)](
        *tables[:3], best, best_logit, segment_max, bounds, tops, **_of(sample_bounds_kernel, sizes),
        num_warps=triton_weigh.BOUNDS_WARPS,
    )  # fmt: skip
    sample_weigh_kernel[(SPLITS, num_rows)](
        logits, *tables[:3], rewritten, is_rewritten, bounds, tops, masses, logits.stride(0),
        **_of(sample_weigh_kernel, sizes), num_warps=triton_weigh.NUM_WARPS,
    )  # fmt: skip
    sample_choose_kernel[(num_rows,)](
        logits, *tables, best, best_logit, segment_max, group_max, rewritten, is_rewritten, bounds, masses, listed,
        candidate_logits, candidate_tokens, sampled, logits.stride(0), num_tokens.stride(0),
        **_of(sample_choose_kernel, sizes), num_warps=triton_choose.NUM_WARPS,
    )  # fmt: skip
    return sampled


def _sizes(vocab_size: int) -> dict[str, int]:
    """The constants of the kernels' sizes, by name."""
    num_segments, group = triton.cdiv(vocab_size, SEGMENT), group_size(vocab_size)
    num_groups = triton.cdiv(vocab_size, group)
    return {
        "VOCAB_SIZE": vocab_size,
        "CHUNK": CHUNK,
        "SEGMENT": SEGMENT,
        "NUM_SEGMENTS": num_segments,
        "SEGMENT_BLOCK": triton.next_power_of_2(num_segments),
        # More of them would take registers that rows of many segments need.
        "SEGMENTS_AT_ONCE": 8 if num_segments <= 512 else 4,
        "GROUP": group,
        "NUM_GROUPS": num_groups,
        "GROUP_BLOCK": triton.next_power_of_2(num_groups),
        "LISTED": LISTED,
        "GATHERED": GATHERED,
        "CANDIDATES": CANDIDATES,
        "SPLITS": SPLITS,
        "TILE": TILE,
        "ROW_TILE": triton_choose.ROW_TILE,
    }


def _of(kernel: triton.JITFunction, sizes: dict[str, int]) -> dict[str, int]:
    """The constants that a kernel takes."""
    return {name: size for name, size in sizes.items() if name in kernel.arg_names}


def _signature(logits_kind: str) -> dict[str, str]:
    partial = ("floats", "best_logit", "segment_max", "group_max", "rewritten", "bounds", "tops", "candidate_logits")
    int64 = ("slots", "ints", "num_tokens", "mask_rows", "best", "masses", "sampled")
    int32 = ("token_ids", "stop_token_ids", "lists", "bad_words", "list", "counts", "is_rewritten", "candidate_tokens")
    integers = ("chunks_at_once", "num_masks")
    strides = ("stride_logits", "stride_num_tokens", "stride_tokens", "stride_stops", "stride_masks")
    signature = dict.fromkeys((f"{name}_ptr" for name in partial), "*fp32")
    signature |= dict.fromkeys((f"{name}_ptr" for name in int64), "*i64")
    signature |= dict.fromkeys((f"{name}_ptr" for name in int32), "*i32")
    signature |= dict.fromkeys(("masks_ptr", "allowed_ptr"), "*u8")
    return signature | dict.fromkeys((*integers, *strides), "i32") | {"logits_ptr": logits_kind}
