"""Routing on a GPU: chooses the experts of each token and sorts rows by expert for the grouped products.

A pair is one token with one of its experts: pair = token * top_k + place. The grouped products work on blocks of
BLOCK_M rows of one expert; its last block is padded. How many blocks there are depends on the routing; grids cover the
most there can be, and blocks without rows end at once, so that one captured graph serves every routing.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from pagewire_kernels.fused_moe.router import RouterSpec
from pagewire_kernels.gpu.dependent_launch import launch_options, release_next, wait_for_previous

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_FEW_SLOTS = 128
"""Up to this many pairs, one program routes all: comparing all pairs costs less than two more launches."""
_FEW_COMPARISONS = 128 * 128
"""One program compares at most so many pairs of a slot and an expert, which its registers hold."""
_CHOSEN = 1
"""Tokens of one program of moe_choose_kernel; a program is one warp."""
_ARRANGED = 64
"""Pairs and blocks of one program of moe_arrange_kernel, which compares each with every expert."""


@dataclass(frozen=True, slots=True)
class Routing:
    """Rows sorted by expert."""

    weights: torch.Tensor
    """[num_tokens, top_k] float32."""
    pairs: torch.Tensor
    """[num_blocks * block_m] int32: each row's pair; arbitrary in a block beyond its num_rows."""
    block_experts: torch.Tensor
    """[num_blocks] int32: the expert whose rows a block has."""
    block_num_rows: torch.Tensor
    """[num_blocks] int32; 0: the block is not needed."""


@triton.jit
def _within_best_groups(
    choice,
    columns,
    NUM_EXPERTS: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    GROUP_BEST: tl.constexpr,
):
    """[TOKENS, EXPERTS_BLOCK]: -inf for experts outside the token's TOP_GROUPS groups."""
    GROUP_SIZE: tl.constexpr = NUM_EXPERTS // NUM_GROUPS
    group = columns // GROUP_SIZE
    values = tl.full(choice.shape, -float("inf"), tl.float32)
    for index in range(NUM_GROUPS):
        members = tl.where(group == index, choice, -float("inf"))
        value = tl.max(members, axis=1)
        if GROUP_BEST == 2:
            best = tl.argmax(members, axis=1)[:, None]
            value += tl.max(tl.where(columns == best, -float("inf"), members), axis=1)
        values = tl.where(group == index, value[:, None], values)
    within = tl.full(choice.shape, -float("inf"), tl.float32)
    for _ in range(TOP_GROUPS):
        best_group = tl.argmax(values, axis=1)[:, None] // GROUP_SIZE  # the first among equals
        within = tl.where(group == best_group, choice, within)
        values = tl.where(group == best_group, -float("inf"), values)
    return within


@triton.jit
def _top_experts(
    logits_ptr,
    correction_ptr,
    token,
    num_tokens,
    stride_logits,
    NUM_EXPERTS: tl.constexpr,
    EXPERTS_BLOCK: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_K_BLOCK: tl.constexpr,
    SCORING: tl.constexpr,
    RENORMALISE: tl.constexpr,
    SCALE: tl.constexpr,
    MIN_TOTAL: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    GROUP_BEST: tl.constexpr,
    TOLERANCE: tl.constexpr,
    HAS_CORRECTION: tl.constexpr,
):
    """The experts of some tokens, best first, and their weights: [TOKENS, TOP_K_BLOCK] int32 and float32."""
    columns = tl.arange(0, EXPERTS_BLOCK)[None, :]
    places = tl.arange(0, TOP_K_BLOCK)[None, :]
    mask = (token < num_tokens)[:, None] & (columns < NUM_EXPERTS)
    offsets = token.to(tl.int64)[:, None] * stride_logits + columns
    logits = tl.load(logits_ptr + offsets, mask=mask, other=-float("inf")).to(tl.float32)  # [TOKENS, EXPERTS_BLOCK]
    # NaN has no order. A token with NaN, such as a padding row, goes through arbitrary valid experts.
    left = tl.where(logits == logits, logits, -float("inf"))
    CHOOSES_BY_SCORE: tl.constexpr = SCORING == "sigmoid" or HAS_CORRECTION or NUM_GROUPS > 1
    # exp(logit - largest) is the softmax but for a factor, by which the weights are divided in the end.
    scores = tl.sigmoid(logits) if SCORING == "sigmoid" else tl.exp(logits - tl.max(left, axis=1)[:, None])
    all_scores = tl.sum(scores, axis=1)
    if CHOOSES_BY_SCORE:
        if SCORING == "softmax":
            scores /= all_scores[:, None]
        choice = scores
        if HAS_CORRECTION:
            choice += tl.load(correction_ptr + columns, mask=columns < NUM_EXPERTS, other=0.0)
        left = tl.where(mask & (choice == choice), choice, -float("inf"))
        if NUM_GROUPS > 1:
            left = _within_best_groups(left, columns, NUM_EXPERTS, NUM_GROUPS, TOP_GROUPS, GROUP_BEST)
    experts = tl.zeros_like(token)[:, None] + tl.zeros_like(places)
    weights = experts.to(tl.float32)
    for place in tl.static_range(TOP_K):
        best = tl.argmax(left, axis=1)[:, None]  # the first among equals
        if SCORING == "sparsemixer":
            top = tl.max(left, axis=1)[:, None]
            is_far = (top - logits) / tl.maximum(tl.abs(logits), top) > TOLERANCE
            weight = 1.0 / tl.sum(tl.where(is_far, 0.0, tl.exp(left - top)), axis=1)[:, None]
        else:
            weight = tl.sum(tl.where(columns == best, scores, 0.0), axis=1)[:, None]
        experts = tl.where(places == place, best, experts)
        weights = tl.where(places == place, weight, weights)
        left = tl.where(columns == best, -float("inf"), left)
    IS_UNSCALED_SOFTMAX: tl.constexpr = SCORING == "softmax" and not CHOOSES_BY_SCORE
    if RENORMALISE:
        least = MIN_TOTAL * all_scores if IS_UNSCALED_SOFTMAX else MIN_TOTAL
        weights /= tl.maximum(tl.sum(weights, axis=1), least)[:, None]
    elif IS_UNSCALED_SOFTMAX:
        weights /= all_scores[:, None]
    if SCALE != 1.0:
        weights *= SCALE
    return experts, weights


@triton.jit
def _rows_of(counts, expert, rank, EXPERTS_BLOCK: tl.constexpr, BLOCK_M: tl.constexpr):
    """The rows of some pairs: each expert's rows begin with a block.

    Args:
        counts: [EXPERTS_BLOCK], pairs of each expert.
        expert: [PAIRS], the expert of each pair.
        rank: [PAIRS], the position of each pair among the pairs of its expert.
    """
    columns = tl.arange(0, EXPERTS_BLOCK)
    blocks = (counts + BLOCK_M - 1) // BLOCK_M
    starts = tl.cumsum(blocks, axis=0) - blocks
    return tl.sum(tl.where(columns[None, :] == expert[:, None], starts[None, :], 0), axis=1) * BLOCK_M + rank


@triton.jit
def _describe_blocks(
    counts,
    index,
    num_blocks,
    block_experts_ptr,
    block_num_rows_ptr,
    NUM_EXPERTS: tl.constexpr,
    EXPERTS_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Stores the expert and the number of rows of the blocks `index`."""
    columns = tl.arange(0, EXPERTS_BLOCK)
    blocks = (counts + BLOCK_M - 1) // BLOCK_M
    ends = tl.cumsum(blocks, axis=0)
    # The first expert whose blocks end after this one; there is none for blocks that are not needed.
    owner = tl.sum((ends[None, :] <= index[:, None]).to(tl.int32), axis=1)
    rest = counts[None, :] - (index[:, None] - (ends - blocks)[None, :]) * BLOCK_M
    num_rows = tl.sum(tl.where(columns[None, :] == owner[:, None], rest, 0), axis=1)
    is_block = index < num_blocks
    tl.store(block_experts_ptr + index, tl.minimum(owner, NUM_EXPERTS - 1), mask=is_block)
    tl.store(block_num_rows_ptr + index, tl.minimum(num_rows, BLOCK_M), mask=is_block)


@triton.jit(do_not_specialize=["num_tokens", "num_blocks"])
def moe_route_few_kernel(
    logits_ptr,
    correction_ptr,
    weights_ptr,
    pairs_ptr,
    block_experts_ptr,
    block_num_rows_ptr,
    num_tokens,
    num_blocks,
    stride_logits,
    NUM_EXPERTS: tl.constexpr,
    EXPERTS_BLOCK: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_K_BLOCK: tl.constexpr,
    SCORING: tl.constexpr,
    RENORMALISE: tl.constexpr,
    SCALE: tl.constexpr,
    MIN_TOTAL: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    GROUP_BEST: tl.constexpr,
    TOLERANCE: tl.constexpr,
    HAS_CORRECTION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TOKENS: tl.constexpr,
    SLOTS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (1,); the program does for at most TOKENS tokens what the two kernels below do for any number.

    A slot is a place in the tile of pairs, SLOTS = TOKENS * TOP_K_BLOCK; some hold no pair.
    """
    release_next(PDL)
    wait_for_previous(PDL)
    token = tl.arange(0, TOKENS)
    # [TOKENS, TOP_K_BLOCK]
    experts, weights = _top_experts(
        logits_ptr,
        correction_ptr,
        token,
        num_tokens,
        stride_logits,
        NUM_EXPERTS,
        EXPERTS_BLOCK,
        TOP_K,
        TOP_K_BLOCK,
        SCORING,
        RENORMALISE,
        SCALE,
        MIN_TOTAL,
        NUM_GROUPS,
        TOP_GROUPS,
        GROUP_BEST,
        TOLERANCE,
        HAS_CORRECTION,
    )
    place = tl.arange(0, TOP_K_BLOCK)[None, :]
    holds_pair = (token < num_tokens)[:, None] & (place < TOP_K)
    tl.store(weights_ptr + token[:, None] * TOP_K + place, weights, mask=holds_pair)
    # A slot without a pair has an expert index that no expert has.
    expert = tl.reshape(tl.where(holds_pair, experts, EXPERTS_BLOCK), [SLOTS])
    slot = tl.arange(0, SLOTS)
    is_earlier = (expert[None, :] == expert[:, None]) & (slot[None, :] < slot[:, None])
    rank = tl.sum(is_earlier.to(tl.int32), axis=1)
    counts = tl.sum((expert[:, None] == tl.arange(0, EXPERTS_BLOCK)[None, :]).to(tl.int32), axis=0)
    row = _rows_of(counts, expert, rank, EXPERTS_BLOCK, BLOCK_M)
    pair = slot // TOP_K_BLOCK * TOP_K + slot % TOP_K_BLOCK
    tl.store(pairs_ptr + row, pair, mask=expert < EXPERTS_BLOCK)
    _describe_blocks(
        counts, slot, num_blocks, block_experts_ptr, block_num_rows_ptr, NUM_EXPERTS, EXPERTS_BLOCK, BLOCK_M
    )


@triton.jit(do_not_specialize=["num_tokens"])
def moe_choose_kernel(
    logits_ptr,
    correction_ptr,
    weights_ptr,
    experts_ptr,
    ranks_ptr,
    counts_ptr,
    num_tokens,
    stride_logits,
    NUM_EXPERTS: tl.constexpr,
    EXPERTS_BLOCK: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_K_BLOCK: tl.constexpr,
    SCORING: tl.constexpr,
    RENORMALISE: tl.constexpr,
    SCALE: tl.constexpr,
    MIN_TOTAL: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    GROUP_BEST: tl.constexpr,
    TOLERANCE: tl.constexpr,
    HAS_CORRECTION: tl.constexpr,
    TOKENS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (cdiv(num_tokens, TOKENS),); one program chooses the experts of TOKENS tokens.

    A pair's rank follows the order in which programs happen to come. It decides which row of a product a pair gets, and
    no row depends on another.
    """
    release_next(PDL)
    wait_for_previous(PDL)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    # [TOKENS, TOP_K_BLOCK]
    experts, weights = _top_experts(
        logits_ptr,
        correction_ptr,
        token,
        num_tokens,
        stride_logits,
        NUM_EXPERTS,
        EXPERTS_BLOCK,
        TOP_K,
        TOP_K_BLOCK,
        SCORING,
        RENORMALISE,
        SCALE,
        MIN_TOTAL,
        NUM_GROUPS,
        TOP_GROUPS,
        GROUP_BEST,
        TOLERANCE,
        HAS_CORRECTION,
    )
    place = tl.arange(0, TOP_K_BLOCK)[None, :]
    pair = token[:, None] * TOP_K + place
    mask = (token < num_tokens)[:, None] & (place < TOP_K)
    tl.store(weights_ptr + pair, weights, mask=mask)
    tl.store(experts_ptr + pair, experts, mask=mask)
    tl.store(ranks_ptr + pair, tl.atomic_add(counts_ptr + experts, 1, mask=mask), mask=mask)


@triton.jit(do_not_specialize=["num_pairs", "num_blocks"])
def moe_arrange_kernel(
    experts_ptr,
    ranks_ptr,
    counts_ptr,
    pairs_ptr,
    block_experts_ptr,
    block_num_rows_ptr,
    num_pairs,
    num_blocks,
    NUM_EXPERTS: tl.constexpr,
    EXPERTS_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ARRANGED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (cdiv(max(num_pairs, num_blocks), ARRANGED),); one program places ARRANGED pairs and describes ARRANGED
    blocks."""
    release_next(PDL)
    wait_for_previous(PDL)
    columns = tl.arange(0, EXPERTS_BLOCK)
    counts = tl.load(counts_ptr + columns, mask=columns < NUM_EXPERTS, other=0)  # [EXPERTS_BLOCK]
    index = tl.program_id(0) * ARRANGED + tl.arange(0, ARRANGED)
    is_pair = index < num_pairs
    expert = tl.load(experts_ptr + index, mask=is_pair, other=0)  # [ARRANGED]
    rank = tl.load(ranks_ptr + index, mask=is_pair, other=0)
    tl.store(pairs_ptr + _rows_of(counts, expert, rank, EXPERTS_BLOCK, BLOCK_M), index, mask=is_pair)
    _describe_blocks(
        counts, index, num_blocks, block_experts_ptr, block_num_rows_ptr, NUM_EXPERTS, EXPERTS_BLOCK, BLOCK_M
    )


def max_blocks(num_pairs: int, num_experts: int, block_m: int) -> int:
    """Returns the most blocks that any routing needs: all but one row of an expert's last block may be padding."""
    num_used = min(num_experts, num_pairs)
    return (num_pairs - num_used) // block_m + num_used


def route(router_logits: torch.Tensor, router: RouterSpec, correction: torch.Tensor | None, block_m: int) -> Routing:
    """Chooses experts and sorts rows, in one launch for few pairs, else in two.

    Args:
        router_logits: [num_tokens, num_experts], rows contiguous.
        correction: [num_experts] float32, or None.
    """
    num_tokens, num_experts = router_logits.shape
    top_k = router.top_k
    num_pairs, device = num_tokens * top_k, router_logits.device
    num_blocks = max_blocks(num_pairs, num_experts, block_m)
    routing = Routing(
        weights=torch.empty((num_tokens, top_k), dtype=torch.float32, device=device),
        pairs=torch.empty(num_blocks * block_m, dtype=torch.int32, device=device),
        block_experts=torch.empty(num_blocks, dtype=torch.int32, device=device),
        block_num_rows=torch.empty(num_blocks, dtype=torch.int32, device=device),
    )
    constants = _constants(num_experts, router, correction is not None)
    tokens = triton.next_power_of_2(num_tokens)
    num_slots = tokens * constants["TOP_K_BLOCK"]
    if num_slots > _FEW_SLOTS or num_slots * constants["EXPERTS_BLOCK"] > _FEW_COMPARISONS:
        _route_many(router_logits, correction, routing, constants, block_m)
        return routing
    moe_route_few_kernel[(1,)](
        router_logits,
        router_logits if correction is None else correction,
        routing.weights,
        routing.pairs,
        routing.block_experts,
        routing.block_num_rows,
        num_tokens,
        num_blocks,
        router_logits.stride(0),
        **constants,
        BLOCK_M=block_m,
        TOKENS=tokens,
        SLOTS=num_slots,
        **launch_options(device),
        num_warps=_few_warps(num_slots, constants["EXPERTS_BLOCK"]),
    )
    return routing


def _few_warps(num_slots: int, experts_block: int) -> int:
    """Returns the fewest warps that keep the comparisons in registers, because sums across warps take longer."""
    return min(8, max(1, num_slots // 16, num_slots * experts_block // 2048))


def _route_many(
    router_logits: torch.Tensor,
    correction: torch.Tensor | None,
    routing: Routing,
    constants: dict[str, Any],
    block_m: int,
) -> None:
    num_tokens, num_experts = router_logits.shape
    num_pairs, num_blocks = routing.weights.numel(), len(routing.block_experts)
    experts, ranks = torch.empty((2, num_pairs), dtype=torch.int32, device=router_logits.device).unbind()
    counts = torch.zeros(num_experts, dtype=torch.int32, device=router_logits.device)
    moe_choose_kernel[(triton.cdiv(num_tokens, _CHOSEN),)](
        router_logits,
        router_logits if correction is None else correction,
        routing.weights,
        experts,
        ranks,
        counts,
        num_tokens,
        router_logits.stride(0),
        **constants,
        TOKENS=_CHOSEN,
        **launch_options(router_logits.device),
        num_warps=1,
    )
    moe_arrange_kernel[(triton.cdiv(max(num_pairs, num_blocks), _ARRANGED),)](
        experts,
        ranks,
        counts,
        routing.pairs,
        routing.block_experts,
        routing.block_num_rows,
        num_pairs,
        num_blocks,
        NUM_EXPERTS=num_experts,
        EXPERTS_BLOCK=constants["EXPERTS_BLOCK"],
        BLOCK_M=block_m,
        ARRANGED=_ARRANGED,
        **launch_options(router_logits.device),
    )


def _constants(num_experts: int, router: RouterSpec, has_correction: bool) -> dict[str, Any]:
    return {
        "NUM_EXPERTS": num_experts,
        "EXPERTS_BLOCK": triton.next_power_of_2(num_experts),
        "TOP_K": router.top_k,
        "TOP_K_BLOCK": triton.next_power_of_2(router.top_k),
        "SCORING": router.scoring,
        "RENORMALISE": router.renormalise,
        "SCALE": router.scale,
        "MIN_TOTAL": router.min_total,
        "NUM_GROUPS": router.num_groups,
        "TOP_GROUPS": router.top_groups,
        "GROUP_BEST": router.group_best,
        "TOLERANCE": router.tolerance,
        "HAS_CORRECTION": has_correction,
    }
