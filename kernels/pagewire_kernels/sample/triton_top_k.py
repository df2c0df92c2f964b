"""top_k on a GPU: the tokens that it keeps among the groups with the largest maxima, or, where these are too many, the
logit below which it drops tokens."""

import triton
import triton.language as tl

from pagewire_kernels.sample.triton_noise import score_of_tokens
from pagewire_kernels.sample.triton_row import NOTHING, equal_top, key_value, order_key, rank
from pagewire_kernels.sample.triton_weigh import MASS_OF_TOP, VECTOR, load_logits, share_of

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

LEAST_GROUP = 32
"""Tokens of a group, at least: top_k looks at its maximum before it looks at them."""
MAX_GROUPS = 4096
"""Groups of a row, whose maxima a program keeps in registers."""
LISTED = 512
"""Groups whose tokens are looked at, at most."""
GATHERED = 2048
"""Tokens of those groups above the bound, at most."""
CANDIDATES = 512
"""Tokens that are compared with each other, at most."""
_TOKENS_AT_ONCE = tl.constexpr(1024)
_RIVALS_AT_ONCE = tl.constexpr(4)
_SEARCH_STEPS = tl.constexpr(12)
_MARGIN = tl.constexpr(8)
"""Floats below a bound that may be the same as it once divided by the temperature."""
_VALUE_STEPS = tl.constexpr(10)
"""Steps that divide the distance of values; the rest divide the floats between."""


def group_size(vocab_size: int) -> int:
    """Tokens of a group, a power of two."""
    return max(LEAST_GROUP, 1 << (-(-vocab_size // MAX_GROUPS) - 1).bit_length())


@triton.jit
def _bound_of_largest(values, top, top_k):
    """A bound that top_k values reach, and few more unless ties prevent it; and how many reach it."""
    low = tl.min(tl.where(values > float("-inf"), values, float("inf")), axis=0)
    high = top
    reached = tl.sum((values >= low).to(tl.int32), axis=0)
    step = 0
    while (step < _SEARCH_STEPS) & (reached > top_k + top_k // 4 + 16):
        quarter = 0.25 * (high - low)
        bound1, bound2, bound3 = low + quarter, low + 2.0 * quarter, high - quarter
        # Three counts in one sum.
        packed = (values >= bound1).to(tl.int64) | ((values >= bound2).to(tl.int64) << 20)
        counts = tl.sum(packed | ((values >= bound3).to(tl.int64) << 40), axis=0)
        count1 = (counts & 0xFFFFF).to(tl.int32)
        count2 = ((counts >> 20) & 0xFFFFF).to(tl.int32)
        count3 = (counts >> 40).to(tl.int32)
        if count3 >= top_k:
            low, reached = bound3, count3
        elif count2 >= top_k:
            low, high, reached = bound2, bound3, count2
        elif count1 >= top_k:
            low, high, reached = bound1, bound2, count1
        else:
            high = bound1
        step += 1
    return low, reached


@triton.jit
def _gather(
    list_ptr,
    num_listed,
    logits_ptr,
    rewritten_ptr,
    is_rewritten,
    bound,
    gathered_logits_ptr,
    gathered_tokens_ptr,
    VOCAB_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    GATHERED: tl.constexpr,
):
    """Writes down the tokens of the listed groups above a bound, at most GATHERED; returns how many there are."""
    num_gathered = tl.full([], 0, tl.int32)
    groups_at_once: tl.constexpr = _TOKENS_AT_ONCE // GROUP
    for first in range(0, num_listed, groups_at_once):
        index = first + tl.arange(0, groups_at_once)
        group = tl.load(list_ptr + index, mask=index < num_listed, other=VOCAB_SIZE)
        token = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        token = tl.reshape(token, (_TOKENS_AT_ONCE,))
        x = load_logits(logits_ptr, rewritten_ptr, is_rewritten, token, token < VOCAB_SIZE)
        is_above = x > bound
        place = num_gathered + tl.cumsum(is_above.to(tl.int32), axis=0) - 1
        tl.store(gathered_logits_ptr + place, x, mask=is_above & (place < GATHERED))
        tl.store(gathered_tokens_ptr + place, token, mask=is_above & (place < GATHERED))
        num_gathered += tl.sum(is_above.to(tl.int32), axis=0)
    # Other threads read what this one has written.
    tl.debug_barrier()
    return num_gathered


@triton.jit
def _pick(
    gathered_logits_ptr,
    gathered_tokens_ptr,
    num_gathered,
    low,
    top,
    top_k,
    GATHERED: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """Writes down, behind the gathered tokens, the largest of them; returns how many there are, at most CANDIDATES of
    which are written."""
    index = tl.arange(0, GATHERED)
    x = tl.load(gathered_logits_ptr + index, mask=index < num_gathered, other=float("-inf"))
    bound, _ = _bound_of_largest(x, top, top_k)
    bound = tl.maximum(key_value(order_key(bound) - _MARGIN), low)
    is_above = x > bound
    place = tl.cumsum(is_above.to(tl.int32), axis=0) - 1
    is_picked = is_above & (place < CANDIDATES)
    token = tl.load(gathered_tokens_ptr + index, mask=is_picked, other=0)
    tl.store(gathered_logits_ptr + GATHERED + place, x, mask=is_picked)
    tl.store(gathered_tokens_ptr + GATHERED + place, token, mask=is_picked)
    tl.debug_barrier()
    return tl.sum(is_above.to(tl.int32), axis=0)


@triton.jit
def _masses(x, top, scale):
    return (tl.exp2((x - top) * scale) * MASS_OF_TOP).to(tl.int64)


@triton.jit
def _draw(
    candidate_logits_ptr,
    candidate_tokens_ptr,
    num_candidates,
    top,
    temperature,
    scale,
    top_k,
    top_p,
    seed,
    position,
    CANDIDATES: tl.constexpr,
):
    """The rank of the token that is drawn from the candidates that top_k and top_p keep."""
    index = tl.arange(0, CANDIDATES)
    is_candidate = index < num_candidates
    x = tl.load(candidate_logits_ptr + index, mask=is_candidate, other=float("-inf"))
    token = tl.load(candidate_tokens_ptr + index, mask=is_candidate, other=0)
    scaled = tl.div_rn(x, tl.zeros_like(x) + temperature)
    num_larger = tl.zeros((CANDIDATES,), tl.int32)
    larger_mass = tl.zeros((CANDIDATES,), tl.int64)
    for first in range(0, num_candidates, _RIVALS_AT_ONCE):
        rival = first + tl.arange(0, _RIVALS_AT_ONCE)
        other = tl.load(candidate_logits_ptr + rival, mask=rival < num_candidates, other=float("-inf"))
        is_larger = tl.div_rn(other, tl.zeros_like(other) + temperature)[None, :] > scaled[:, None]
        num_larger += tl.sum(is_larger.to(tl.int32), axis=1)
        larger_mass += tl.sum(tl.where(is_larger, _masses(other, top, scale)[None, :], 0), axis=1)
    kept = is_candidate & (num_larger < top_k)
    mass = tl.sum(tl.where(kept, _masses(x, top, scale), 0), axis=0)
    kept &= larger_mass < tl.where(top_p < 1.0, share_of(mass, top_p), mass + 1)
    score = score_of_tokens(x, scale, seed, position, token)
    return tl.max(tl.where(kept, rank(score, token), NOTHING), axis=0)


@triton.jit
def draw_from_few(
    group_max_ptr,
    list_ptr,
    candidate_logits_ptr,
    candidate_tokens_ptr,
    logits_ptr,
    rewritten_ptr,
    is_rewritten,
    low,
    top,
    temperature,
    scale,
    top_k,
    top_p,
    seed,
    position,
    VOCAB_SIZE: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    LISTED: tl.constexpr,
    GATHERED: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """The rank of the drawn token if few candidates hold all that top_k keeps, else NOTHING.

    Args:
        low: Logits up to this one are dropped whatever top_k keeps.
        top_k: int32, less than VOCAB_SIZE.
        list_ptr, candidate_logits_ptr, candidate_tokens_ptr: The row's own scratch space.
    """
    group = tl.arange(0, GROUP_BLOCK)
    maxima = tl.load(group_max_ptr + group, mask=group < NUM_GROUPS, other=float("-inf"))
    bound, reached = _bound_of_largest(maxima, top, top_k)
    chosen = tl.full([], NOTHING, tl.int64)
    if reached >= top_k:
        bound = tl.maximum(key_value(order_key(bound) - _MARGIN), low)
        listed = maxima > bound
        num_listed = tl.sum(listed.to(tl.int32), axis=0)
        if num_listed <= LISTED:
            tl.store(list_ptr + tl.cumsum(listed.to(tl.int32), axis=0) - 1, group, mask=listed)
            # Other threads read what this one has written.
            tl.debug_barrier()
            num_candidates = _gather(
                list_ptr, num_listed, logits_ptr, rewritten_ptr, is_rewritten, bound, candidate_logits_ptr,
                candidate_tokens_ptr, VOCAB_SIZE, GROUP, GATHERED,
            )  # fmt: skip
            if (num_candidates > CANDIDATES) & (num_candidates <= GATHERED):
                # The largest tokens are close to each other: few groups have many of them.
                num_candidates = _pick(
                    candidate_logits_ptr, candidate_tokens_ptr, num_candidates, low, top, top_k, GATHERED, CANDIDATES
                )
                candidate_logits_ptr += GATHERED
                candidate_tokens_ptr += GATHERED
            if num_candidates <= CANDIDATES:
                chosen = _draw(
                    candidate_logits_ptr, candidate_tokens_ptr, num_candidates, top, temperature, scale, top_k, top_p,
                    seed, position, CANDIDATES,
                )  # fmt: skip
    return chosen


@triton.jit
def _count(
    logits_ptr,
    rewritten_ptr,
    is_rewritten,
    bound1,
    bound2,
    bound3,
    bound4,
    VOCAB_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """How many tokens have a logit that exceeds each bound: four int32."""
    counts1 = tl.zeros((TILE // VECTOR,), tl.int32)
    counts2, counts3, counts4 = counts1, counts1, counts1
    offset = tl.arange(0, TILE // VECTOR)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    for first in range(0, VOCAB_SIZE, TILE):
        token = first + offset
        x = load_logits(logits_ptr, rewritten_ptr, is_rewritten, token, token < VOCAB_SIZE)
        counts1 += tl.sum((x > bound1).to(tl.int32), axis=1)
        counts2 += tl.sum((x > bound2).to(tl.int32), axis=1)
        counts3 += tl.sum((x > bound3).to(tl.int32), axis=1)
        counts4 += tl.sum((x > bound4).to(tl.int32), axis=1)
    return tl.sum(counts1, axis=0), tl.sum(counts2, axis=0), tl.sum(counts3, axis=0), tl.sum(counts4, axis=0)


@triton.jit
def below_top_k(
    logits_ptr,
    rewritten_ptr,
    is_rewritten,
    low,
    top,
    temperature,
    scale,
    top_k,
    VOCAB_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """A logit below all that top_k keeps of those above low, and not below anything else.

    Tokens above `low`, num_low in number, are at least top_k. Those not decided on lie above low, and not above high.
    """
    infinity = tl.full([], float("inf"), tl.float32)
    num_low, _, _, _ = _count(
        logits_ptr, rewritten_ptr, is_rewritten, low, infinity, infinity, infinity, VOCAB_SIZE, TILE
    )
    if num_low > top_k:
        high, num_high = top, tl.full([], 0, tl.int32)
        distance = 4.0 / scale
        step = 0
        # Keys between neighbours of the logits' own precision.
        gap = tl.full([], 1, tl.int64)
        if logits_ptr.dtype.element_ty == tl.bfloat16:
            gap = tl.where(is_rewritten, gap, 1 << 16)
        while (order_key(high).to(tl.int64) - order_key(low) > gap) & (num_low - num_high > 1):
            low_key, high_key = order_key(low).to(tl.int64), order_key(high).to(tl.int64)
            part = 1 + tl.arange(0, 4)
            if low == float("-inf"):
                places = order_key(high - distance * (5 - part).to(tl.float32)).to(tl.int64)
                distance *= 8.0
            elif step < _VALUE_STEPS:
                places = order_key(low + 0.2 * part.to(tl.float32) * (high - low)).to(tl.int64)
            else:
                places = low_key + part.to(tl.int64) * (high_key - low_key) // 5
            places = tl.minimum(tl.maximum(places, low_key + 1), high_key - 1)
            for_part = tl.where(part == 1, places, 0)
            place1 = key_value(tl.sum(for_part, axis=0).to(tl.int32))
            place2 = key_value(tl.sum(tl.where(part == 2, places, 0), axis=0).to(tl.int32))
            place3 = key_value(tl.sum(tl.where(part == 3, places, 0), axis=0).to(tl.int32))
            place4 = key_value(tl.sum(tl.where(part == 4, places, 0), axis=0).to(tl.int32))
            bound1, bound2 = equal_top(place1, temperature), equal_top(place2, temperature)
            bound3, bound4 = equal_top(place3, temperature), equal_top(place4, temperature)
            num1, num2, num3, num4 = _count(
                logits_ptr, rewritten_ptr, is_rewritten, bound1, bound2, bound3, bound4, VOCAB_SIZE, TILE
            )
            if num4 >= top_k:
                low, num_low = bound4, num4
            elif num3 >= top_k:
                low, num_low, high, num_high = bound3, num3, place4, num4
            elif num2 >= top_k:
                low, num_low, high, num_high = bound2, num2, place3, num3
            elif num1 >= top_k:
                low, num_low, high, num_high = bound1, num1, place2, num2
            else:
                high, num_high = place1, num1
            step += 1
    return low
