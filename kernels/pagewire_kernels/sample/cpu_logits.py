"""The stages that change one row's logits on a CPU before a token is chosen, all but the masks of a batch.

The definitions stand in reference.py; tensors are addresses.
"""

import numpy as np
from numba import carray, float32, int32, njit

from pagewire_kernels.cpu.team import FASTMATH, pointer
from pagewire_kernels.sample.columns import MAX_BIASES, Stage, float_column, int_column, list_column
from pagewire_kernels.sample.cpu_bans import ban_bad_words, keep_allowed, mask_stop_tokens

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

# numba takes globals for constants of the machine code.
_PENALTIES = int(Stage.PENALTIES)
_PRESENCE, _FREQUENCY, _REPETITION = (
    float_column(f"{name}_penalty") for name in ("presence", "frequency", "repetition")
)
_NUM_PROMPT, _MIN_LEN = int_column("num_prompt_tokens"), int_column("min_len")
_NUM_ALLOWED, _NUM_BAD_WORDS = int_column("allowed_token_ids"), int_column("bad_words")
_NUM_BIASES, _BIASES = int_column("logit_bias"), list_column("logit_bias")


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def add_biases(logits, vocab_size, token_ids, biases, count):
    """Adds `count` biases to the logits of their tokens."""
    row = carray(pointer(logits, float32), (vocab_size,))
    ids = carray(pointer(token_ids, int32), (count,))
    values = carray(pointer(biases, float32), (count,))
    for i in range(count):
        row[ids[i]] += values[i]


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def apply_penalties(
    logits, vocab_size, token_ids, num_prompt_tokens, num_tokens, repetition, frequency, presence, counts
):
    """Repetition, frequency and presence penalty, in time linear in the tokens. counts: [vocab_size] int32 zeros."""
    row = carray(pointer(logits, float32), (vocab_size,))
    tokens = carray(pointer(token_ids, int32), (num_tokens,))
    # counts is 0 for tokens not met yet, then 1 + how often the output holds the token.
    for token in tokens:
        if counts[token] == 0:
            counts[token] = 1
            row[token] = row[token] / repetition if row[token] > 0 else row[token] * repetition
    for i in range(num_prompt_tokens, num_tokens):
        counts[tokens[i]] += 1
    for i in range(num_prompt_tokens, num_tokens):
        count = counts[tokens[i]] - 1
        if count > 0:
            row[tokens[i]] = (row[tokens[i]] - frequency * np.float32(count)) - presence
            counts[tokens[i]] = 1
    for token in tokens:
        counts[token] = 0


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def take_tokens(logits, vocab_size, ints, allowed, bad_words, token_ids, num_tokens):
    """Allowed tokens and bad words, as far as the slot's columns ask for them."""
    if ints[_NUM_ALLOWED] > 0:
        keep_allowed(logits, vocab_size, allowed)
    if ints[_NUM_BAD_WORDS] > 0:
        num_bad_words, num_prompt_tokens = ints[_NUM_BAD_WORDS], ints[_NUM_PROMPT]
        ban_bad_words(logits, vocab_size, bad_words, num_bad_words, token_ids, num_prompt_tokens, num_tokens)


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def take_stop_tokens(logits, vocab_size, ints, stop_token_ids, num_stops, num_tokens):
    """Takes the stop tokens of a sequence that is too short to stop."""
    if num_tokens < ints[_MIN_LEN]:
        mask_stop_tokens(logits, vocab_size, stop_token_ids, num_stops)


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def change_logits(
    logits,
    vocab_size,
    floats,
    ints,
    lists,
    allowed,
    bad_words,
    token_ids,
    num_tokens,
    stop_token_ids,
    num_stops,
    stages,
    counts,
):
    """Applies the stages that the slot's columns ask for.

    Args:
        floats, ints: The slot's rows, arrays.
        lists, allowed, bad_words, token_ids, stop_token_ids: The slot's rows, addresses.
        stages: Without Stage.PENALTIES, counts need not be [vocab_size].
    """
    take_tokens(logits, vocab_size, ints, allowed, bad_words, token_ids, num_tokens)
    if ints[_NUM_BIASES] > 0:
        biases = lists + 4 * _BIASES
        add_biases(logits, vocab_size, biases, biases + 4 * MAX_BIASES, ints[_NUM_BIASES])
    take_stop_tokens(logits, vocab_size, ints, stop_token_ids, num_stops, num_tokens)
    repetition, frequency, presence = floats[_REPETITION], floats[_FREQUENCY], floats[_PRESENCE]
    if stages & _PENALTIES and (repetition != 1 or frequency != 0 or presence != 0):
        apply_penalties(
            logits, vocab_size, token_ids, ints[_NUM_PROMPT], num_tokens, repetition, frequency, presence, counts
        )
