"""The stages that take tokens from one row's logits on a CPU: masks, allowed tokens, bad words, stop mask.

The definitions stand in reference.py; tensors are addresses.
"""

import numpy as np
from numba import carray, float32, int32, njit

from pagewire_kernels.cpu.team import FASTMATH, pointer
from pagewire_kernels.sample.columns import BITS, MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS

# mypy: disable-error-code="no-untyped-def, no-untyped-call"


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def keep_allowed(logits, vocab_size, mask):
    """Sets the logits of tokens whose bit of a mask is 0 to minus infinity."""
    row = carray(pointer(logits, float32), (vocab_size,))
    num_words = (vocab_size + BITS - 1) // BITS
    words = carray(pointer(mask, int32), (num_words,))
    for place in range(num_words):
        word = words[place]
        first = place * BITS
        end = min(first + BITS, vocab_size)
        if word == 0:
            for token in range(first, end):
                row[token] = -np.inf
        elif word != -1:
            for token in range(first, end):
                if (word >> np.int32(token - first)) & 1 == 0:
                    row[token] = -np.inf


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def ban_bad_words(logits, vocab_size, bad_words, num_bad_words, token_ids, num_prompt_tokens, num_tokens):
    """Sets the logit of the last token of each bad word to minus infinity if the output ends with its others."""
    row = carray(pointer(logits, float32), (vocab_size,))
    ends = carray(pointer(bad_words, int32), (MAX_BAD_WORDS,))
    bad_tokens = carray(pointer(bad_words + 4 * MAX_BAD_WORDS, int32), (MAX_BAD_WORD_TOKENS,))
    tokens = carray(pointer(token_ids, int32), (num_tokens,))
    begin = np.int32(0)
    for word in range(num_bad_words):
        last = ends[word] - 1
        num_others = last - begin
        is_banned = num_tokens - num_prompt_tokens >= num_others
        if is_banned:
            for place in range(num_others):
                if tokens[num_tokens - num_others + place] != bad_tokens[begin + place]:
                    is_banned = False
                    break
        if is_banned:
            row[bad_tokens[last]] = -np.inf
        begin = ends[word]


@njit(nogil=True, fastmath=FASTMATH, error_model="numpy", cache=True)
def mask_stop_tokens(logits, vocab_size, stop_token_ids, count):
    """Sets the logits of stop tokens to minus infinity; ids outside the vocabulary are padding."""
    row = carray(pointer(logits, float32), (vocab_size,))
    ids = carray(pointer(stop_token_ids, int32), (count,))
    for i in range(count):
        if 0 <= ids[i] < vocab_size:
            row[ids[i]] = -np.inf
