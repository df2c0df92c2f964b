"""The stages that take tokens from one chunk of one row's logits on a GPU: masks, allowed tokens, bad words, stop mask.

The definitions stand in reference.py.
"""

import triton
import triton.language as tl

from pagewire_kernels.sample import columns

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

_MAX_BAD_WORDS = tl.constexpr(columns.MAX_BAD_WORDS)
_BAD_WORDS_WIDTH = tl.constexpr(columns.BAD_WORDS_WIDTH)


@triton.jit
def keep_allowed(x, mask_ptr, first_token, num_in_chunk, CHUNK: tl.constexpr):
    """Sets the logits of tokens whose bit of a mask, bytes of 8 tokens each, is 0 to minus infinity."""
    # A thread has 8 tokens of a chunk: one byte.
    place = tl.arange(0, CHUNK // 8)
    octets = tl.load(mask_ptr + first_token // 8 + place, mask=8 * place < num_in_chunk, other=0).to(tl.int32)
    bits = (octets[:, None] >> tl.arange(0, 8)[None, :]) & 1  # [CHUNK // 8, 8]
    return tl.where(tl.reshape(bits, (CHUNK,)) != 0, x, float("-inf"))


@triton.jit
def ban_bad_words(
    x,
    scratch_ptr,
    bad_words_ptr,
    slot,
    num_bad_words,
    tokens_ptr,
    num_prompt_tokens,
    num_tokens,
    num_in_chunk,
    first_token,
    CHUNK: tl.constexpr,
):
    """Sets the logits of the last tokens of bad words whose other tokens the output ends with to minus infinity.

    scratch_ptr: CHUNK floats of the program's own. num_bad_words: at least 1.
    """
    offset = tl.arange(0, CHUNK)
    tl.store(scratch_ptr + offset, 0.0, mask=offset < num_in_chunk)
    bad_words_ptr += slot * _BAD_WORDS_WIDTH
    word = tl.arange(0, _MAX_BAD_WORDS)
    is_banned = word < num_bad_words
    end = tl.load(bad_words_ptr + word, mask=is_banned, other=0)  # [_MAX_BAD_WORDS]
    begin = tl.load(bad_words_ptr + word - 1, mask=is_banned & (word > 0), other=0)
    bad_tokens_ptr = bad_words_ptr + _MAX_BAD_WORDS
    num_others = end - begin - 1
    is_banned &= num_others <= num_tokens - num_prompt_tokens
    # From the sequence's last token backwards, as long as some word has tokens that are not compared yet.
    back = 1
    num_left = tl.max(tl.where(is_banned, num_others, 0), axis=0)
    while back <= num_left:
        token = tl.load(tokens_ptr + num_tokens - back)
        has_other = is_banned & (back <= num_others)
        other = tl.load(bad_tokens_ptr + end - 1 - back, mask=has_other, other=-1)
        is_banned &= (other == token) | (has_other == 0)
        num_left = tl.max(tl.where(is_banned, num_others, 0), axis=0)
        back += 1
    banned = tl.load(bad_tokens_ptr + end - 1, mask=is_banned, other=-1) - first_token
    # Between the barriers each thread writes where others have cleared and will read.
    tl.debug_barrier()
    tl.store(scratch_ptr + banned, float("-inf"), mask=is_banned & (banned >= 0) & (banned < num_in_chunk))
    tl.debug_barrier()
    x += tl.load(scratch_ptr + offset, mask=offset < num_in_chunk, other=0.0)
    # The next stage may use the scratch space.
    tl.debug_barrier()
    return x


@triton.jit
def mask_stop_tokens(x, token, stop_ptr, NUM_STOPS: tl.constexpr):
    """Sets the logits of stop tokens to minus infinity; ids that are none of these tokens do nothing."""
    for stop in range(NUM_STOPS):
        x = tl.where(token == tl.load(stop_ptr + stop), float("-inf"), x)
    return x
