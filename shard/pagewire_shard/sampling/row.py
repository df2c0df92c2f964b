"""What a sequence's slot holds in the sampling columns: its parameters, read once from the message that admits it."""

from array import array
from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from pagewire_kernels.sample.columns import BITS, FLOATS, INTS, LISTS, MAX_BAD_WORDS, mask_words

from pagewire_shard.engine.sequence import Sequence

_STAGES = tuple((column.neutral, column.stage.value) for column in (*FLOATS, *INTS))


@dataclass(frozen=True, slots=True, eq=False)
class SamplingRow:
    """One row of SamplingColumns."""

    floats: list[float]
    ints: list[int]
    lists: list[dict[int, float]]
    """For each of LISTS, its tokens and their values."""
    allowed: "array[int]"
    """The mask of the allowed tokens; empty: all are."""
    bad_words: list[int]
    """As SamplingColumns.bad_words has them; empty: none."""
    stages: int
    """The Stages that it needs, as an integer."""


def sampling_row(sequence: Sequence, vocab_size: int) -> SamplingRow:
    """The row of a sequence. A column that has the name of a parameter takes its value, a list its entries."""
    params, stop = sequence.sampling_params, sequence.stop
    allowed_token_ids, bad_words = params.allowed_token_ids, sequence.bad_words
    lists = [dict(entries) if (entries := getattr(params, column.name)) else {} for column in LISTS]
    own = {
        "seed": sequence.seed,
        "num_prompt_tokens": sequence.num_prompt_tokens,
        # The masks of a constrained sequence take stop tokens themselves, as long as others are left.
        "min_len": sequence.num_prompt_tokens + stop.min_tokens if stop.min_tokens and not sequence.constraint else 0,
        "allowed_token_ids": len(allowed_token_ids),
        "bad_words": len(bad_words),
        **{column.name: len(entries) for column, entries in zip(LISTS, lists, strict=True)},
    }
    floats = [getattr(params, column.name) for column in FLOATS]
    ints = [own[name] if (name := column.name) in own else getattr(params, name) for column in INTS]
    stages = 0
    for (neutral, stage), value in zip(_STAGES, (*floats, *ints), strict=True):
        if value != neutral:
            stages |= stage
    allowed = _mask(allowed_token_ids[:], vocab_size) if allowed_token_ids else array("i")
    return SamplingRow(floats, ints, lists, allowed, _bad_words(bad_words) if bad_words else [], stages)


def _mask(token_ids: list[int], vocab_size: int) -> "array[int]":
    """The mask that allows these tokens alone."""
    is_allowed = np.zeros(mask_words(vocab_size) * BITS, dtype=np.bool_)
    is_allowed[token_ids] = True
    return array("i", np.packbits(is_allowed, bitorder="little").tobytes())


def _bad_words(bad_words: Items[Items[int]]) -> list[int]:
    """Where each ends, padded, then the tokens of all."""
    ends = list(accumulate(map(len, bad_words)))
    return ends + [0] * (MAX_BAD_WORDS - len(ends)) + [token_id for word in bad_words for token_id in word]
