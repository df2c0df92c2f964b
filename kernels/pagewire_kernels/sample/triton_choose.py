"""Second launch of sample on a GPU: one program chooses one row's token.

Filters keep the tokens whose strictly larger ones weigh less than a target: counted for top_k, summed up as
probabilities for top_p. So what they keep is what lies above a threshold, which is found by bisection over the order of
floats, exactly. Masses are integers, so that their sums do not depend on any order.

The threshold is looked for among the groups of tokens with the largest maxima only, a few thousand tokens, if these
provably hold all that is kept: the tokens above their bound weigh enough to exclude all below. Otherwise, as with a
flat distribution or a large top_k, it is looked for among all groups.
"""

import triton
import triton.language as tl

from pagewire_kernels.sample.triton_logits import changes_logits
from pagewire_kernels.sample.triton_row import (
    MIN_P,
    NOTHING,
    NUM_FLOATS,
    NUM_INTS,
    SEED,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    gumbel_noise,
    is_filtered,
    key_value,
    order_key,
    rank,
    token_or_none,
)

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

LISTED = 256
"""Groups that are looked at together: 8192 logits, 16 for each thread."""
NUM_WARPS = 16
_ONE = tl.constexpr(1 << 40)
"""The integer mass of the most probable token: 2**20 such tokens fit, and 2**-41 of it is nothing."""
_WIDENINGS = tl.constexpr(16)
_VALUE_STEPS = tl.constexpr(16)
"""Bisections that halve the distance of values; the rest halve the floats between."""


@triton.jit
def _group_maxima(group_max_ptr, NUM_GROUPS: tl.constexpr, GROUP_BLOCK: tl.constexpr):
    group = tl.arange(0, GROUP_BLOCK)
    return tl.load(group_max_ptr + group, mask=group < NUM_GROUPS, other=float("-inf"))  # [GROUP_BLOCK]


@triton.jit
def _choose_bound(maxima, top, LISTED: tl.constexpr):
    """A bound that at most LISTED groups exceed, and at least half as many unless ties prevent it."""
    near, far = tl.full([], 0.0, tl.float32), tl.full([], float("inf"), tl.float32)
    distance = tl.full([], 1.0, tl.float32)
    step, count = 0, tl.full([], 0, tl.int32)
    while (step < _WIDENINGS) & ((count < LISTED // 2) | (count > LISTED)):
        count = tl.sum((maxima > top - distance).to(tl.int32), axis=0)
        if count > LISTED:
            far = distance
        else:
            near = distance
        if count < LISTED // 2:
            distance = tl.where(far == float("inf"), 2.0 * distance, 0.5 * (near + far))
        elif count > LISTED:
            distance = 0.5 * (near + far)
        step += 1
    return top - near


@triton.jit
def _list_groups(maxima, bound, list_ptr, GROUP_BLOCK: tl.constexpr):
    """Writes down the groups whose maximum exceeds the bound; returns how many they are."""
    # The list before may still be read.
    tl.debug_barrier()
    listed = maxima > bound
    place = tl.cumsum(listed.to(tl.int32), axis=0) - 1
    tl.store(list_ptr + place, tl.arange(0, GROUP_BLOCK), mask=listed)
    # Other threads read what this one has written.
    tl.debug_barrier()
    return tl.sum(listed.to(tl.int32), axis=0)


@triton.jit
def _load_listed(
    list_ptr,
    first,
    num_listed,
    logits_ptr,
    rewritten_ptr,
    is_rewritten,
    temperature,
    VOCAB_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    LISTED: tl.constexpr,
):
    """The tokens of LISTED groups from `first` in the list on, and their logits: [LISTED, GROUP] each."""
    place = first + tl.arange(0, LISTED)
    group = tl.load(list_ptr + place, mask=place < num_listed, other=VOCAB_SIZE)
    token = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    mask = token < VOCAB_SIZE
    if is_rewritten:
        x = tl.load(rewritten_ptr + token, mask=mask, other=float("-inf"))
    else:
        x = tl.load(logits_ptr + token, mask=mask, other=float("-inf")).to(tl.float32)
        x = tl.div_rn(x, tl.zeros_like(x) + temperature)
        x = tl.where(x != x, float("inf"), x)  # As the chunks took it.
    return token, x


@triton.jit
def _weigh(
    list_ptr,
    num_listed,
    logits_ptr,
    rewritten_ptr,
    is_rewritten,
    temperature,
    key,
    top,
    BY_MASS: tl.constexpr,
    VOCAB_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    LISTED: tl.constexpr,
):
    """Number and mass (0 unless BY_MASS) of the listed tokens above a key, both int64."""
    count, mass = tl.full([], 0, tl.int64), tl.full([], 0, tl.int64)
    for first in range(0, num_listed, LISTED):
        _, x = _load_listed(
            list_ptr,
            first,
            num_listed,
            logits_ptr,
            rewritten_ptr,
            is_rewritten,
            temperature,
            VOCAB_SIZE,
            GROUP,
            LISTED,
        )
        above = order_key(x) > key
        count += tl.sum(tl.sum(above.to(tl.int32), axis=1), axis=0)
        if BY_MASS:
            masses = tl.where(above, (tl.exp(x - top) * _ONE).to(tl.int64), 0)
            mass += tl.sum(tl.sum(masses, axis=1), axis=0)
    return count, mass


@triton.jit
def _bisect(
    list_ptr,
    num_listed,
    logits_ptr,
    rewritten_ptr,
    is_rewritten,
    temperature,
    low,
    count_low,
    target,
    top,
    BY_MASS: tl.constexpr,
    VOCAB_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    LISTED: tl.constexpr,
):
    """A key below all that is kept and not below anything else: larger tokens of what is kept weigh less than target.

    Tokens above `low`, count_low in number, weigh at least target. Tokens not decided on lie above low, and not above
    high.
    """
    high, count_high = order_key(top).to(tl.int64), tl.full([], 0, tl.int64)
    step = 0
    while (high - low > 1) & (count_low - count_high > 1):
        middle = (low + high) >> 1
        low_value = key_value(low.to(tl.int32))
        if (step < _VALUE_STEPS) & (low_value > float("-inf")):
            value = 0.5 * low_value + 0.5 * key_value(high.to(tl.int32))
            middle = tl.minimum(tl.maximum(order_key(value).to(tl.int64), low + 1), high - 1)
        count, mass = _weigh(
            list_ptr,
            num_listed,
            logits_ptr,
            rewritten_ptr,
            is_rewritten,
            temperature,
            middle.to(tl.int32),
            top,
            BY_MASS,
            VOCAB_SIZE,
            GROUP,
            LISTED,
        )
        weight = mass if BY_MASS else count
        if weight >= target:
            low = middle
            count_low = count
        else:
            high = middle
            count_high = count
        step += 1
    return low


@triton.jit
def _total_mass(chunk_max_ptr, chunk_mass_ptr, top, NUM_CHUNKS: tl.constexpr, CHUNK_BLOCK: tl.constexpr):
    """The integer mass of all tokens of the row."""
    chunk = tl.arange(0, CHUNK_BLOCK)
    maxima = tl.load(chunk_max_ptr + chunk, mask=chunk < NUM_CHUNKS, other=float("-inf"))
    masses = tl.load(chunk_mass_ptr + chunk, mask=chunk < NUM_CHUNKS, other=0.0)
    return (tl.sum(masses * tl.exp(maxima - top), axis=0) * _ONE).to(tl.int64)


@triton.jit
def _share(mass, top_p):
    """top_p of a mass, at least 1: the most probable token is always kept."""
    return tl.maximum((mass.to(tl.float64) * top_p.to(tl.float64)).to(tl.int64), 1)


@triton.jit
def _draw(
    list_ptr,
    num_listed,
    logits_ptr,
    rewritten_ptr,
    is_rewritten,
    temperature,
    threshold,
    seed,
    position,
    VOCAB_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    LISTED: tl.constexpr,
):
    """The rank of the token of the largest logit and noise among those above a key."""
    best = tl.full([], NOTHING, tl.int64)
    for first in range(0, num_listed, LISTED):
        token, x = _load_listed(
            list_ptr,
            first,
            num_listed,
            logits_ptr,
            rewritten_ptr,
            is_rewritten,
            temperature,
            VOCAB_SIZE,
            GROUP,
            LISTED,
        )
        place = first + tl.arange(0, LISTED)
        group = tl.load(list_ptr + place, mask=place < num_listed, other=0)
        counter = group[:, None] * (GROUP // 4) + tl.arange(0, GROUP // 4)[None, :]
        noise = tl.reshape(gumbel_noise(seed, position, counter), (LISTED, GROUP))
        ranks = tl.where(order_key(x) > threshold, rank(x + noise, token), NOTHING)
        best = tl.maximum(best, tl.max(tl.max(ranks, axis=1), axis=0))
    return best


@triton.jit
def sample_choose_kernel(
    logits_ptr,
    slots_ptr,
    floats_ptr,
    ints_ptr,
    num_tokens_ptr,
    best_ptr,
    group_max_ptr,
    chunk_max_ptr,
    chunk_mass_ptr,
    rewritten_ptr,
    list_ptr,
    sampled_ptr,
    stride_logits,
    stride_num_tokens,
    STAGES: tl.constexpr,
    VOCAB_SIZE: tl.constexpr,
    NUM_CHUNKS: tl.constexpr,
    CHUNK_BLOCK: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    LISTED: tl.constexpr,
):
    """Grid: (num_rows,); one program takes the best of the chunks' tokens, or finds it in a filtered row."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    temperature = tl.load(floats_ptr + slot * NUM_FLOATS + TEMPERATURE)
    min_p = tl.load(floats_ptr + slot * NUM_FLOATS + MIN_P)
    top_p = tl.load(floats_ptr + slot * NUM_FLOATS + TOP_P)
    top_k = tl.load(ints_ptr + slot * NUM_INTS + TOP_K)
    if is_filtered(temperature, min_p, top_k, top_p, VOCAB_SIZE):
        num_tokens = tl.load(num_tokens_ptr + slot * stride_num_tokens)
        is_rewritten = changes_logits(floats_ptr, ints_ptr, slot, num_tokens, STAGES)
        logits_ptr += row * stride_logits
        rewritten_ptr += row * VOCAB_SIZE
        group_max_ptr += row * NUM_GROUPS
        list_ptr += row * NUM_GROUPS
        cuts_count = (top_k > 0) & (top_k < VOCAB_SIZE)
        cuts_mass = top_p < 1.0
        minus_infinity = tl.full([], float("-inf"), tl.float32)

        maxima = _group_maxima(group_max_ptr, NUM_GROUPS, GROUP_BLOCK)
        top = tl.max(maxima, axis=0)
        floor = tl.where(min_p > 0.0, top + tl.log(min_p), minus_infinity)
        total = tl.full([], 0, tl.int64)
        if cuts_mass:
            chunks = row * NUM_CHUNKS
            total = _total_mass(chunk_max_ptr + chunks, chunk_mass_ptr + chunks, top, NUM_CHUNKS, CHUNK_BLOCK)
        bound = _choose_bound(maxima, top, LISTED)
        num_listed = _list_groups(maxima, bound, list_ptr, GROUP_BLOCK)
        count, mass = _weigh(
            list_ptr, num_listed, logits_ptr, rewritten_ptr, is_rewritten, temperature, order_key(bound), top, True,
            VOCAB_SIZE, GROUP, LISTED,
        )  # fmt: skip
        # Does the list hold all that is kept, and all that top_p takes its share of?
        holds_share = cuts_mass & (cuts_count == 0) & (floor == minus_infinity) & (mass >= _share(total, top_p))
        if ((floor > bound) | (cuts_count & (count >= top_k)) | holds_share) == 0:
            bound = minus_infinity
            num_listed = _list_groups(
                _group_maxima(group_max_ptr, NUM_GROUPS, GROUP_BLOCK), bound, list_ptr, GROUP_BLOCK
            )

        # What is kept has a key above the threshold.
        threshold = tl.maximum(order_key(bound).to(tl.int64), order_key(floor).to(tl.int64) - 1)
        count, mass = _weigh(
            list_ptr, num_listed, logits_ptr, rewritten_ptr, is_rewritten, temperature, threshold.to(tl.int32), top,
            True, VOCAB_SIZE, GROUP, LISTED,
        )  # fmt: skip
        if cuts_count & (count > top_k):
            threshold = _bisect(
                list_ptr, num_listed, logits_ptr, rewritten_ptr, is_rewritten, temperature, threshold, count, top_k,
                top, False, VOCAB_SIZE, GROUP, LISTED,
            )  # fmt: skip
        if cuts_mass:
            count, mass = _weigh(
                list_ptr, num_listed, logits_ptr, rewritten_ptr, is_rewritten, temperature, threshold.to(tl.int32),
                top, True, VOCAB_SIZE, GROUP, LISTED,
            )  # fmt: skip
            # A list that was cut short by nothing but its bound does not hold the row's whole mass.
            share = _share(tl.where(holds_share, total, mass), top_p)
            if mass >= share:
                threshold = _bisect(
                    list_ptr, num_listed, logits_ptr, rewritten_ptr, is_rewritten, temperature, threshold, count,
                    share, top, True, VOCAB_SIZE, GROUP, LISTED,
                )  # fmt: skip
        seed = tl.load(ints_ptr + slot * NUM_INTS + SEED)
        best = _draw(
            list_ptr, num_listed, logits_ptr, rewritten_ptr, is_rewritten, temperature, threshold.to(tl.int32), seed,
            num_tokens, VOCAB_SIZE, GROUP, LISTED,
        )  # fmt: skip
    else:
        chunk = tl.arange(0, CHUNK_BLOCK)
        ranks = tl.load(best_ptr + row * NUM_CHUNKS + chunk, mask=chunk < NUM_CHUNKS, other=NOTHING)
        best = tl.max(ranks, axis=0)
    tl.store(sampled_ptr + row, token_or_none(best, VOCAB_SIZE))
