"""Masks over the vocabulary: one bit for each token, set if the token may come next."""

from collections.abc import Iterable, Sequence

import numpy as np
from llguidance import LLExecutor, LLMatcher
from llguidance.numpy import fill_next_token_bitmask_par
from numpy.typing import NDArray

from pagewire_shard.grammar.matcher import Matcher
from pagewire_shard.grammar.vocabulary import WORD_BITS, Vocabulary

Masks = NDArray[np.int32]
"""[rows, words]: token t is bit t % 32 of word t // 32."""


NUM_FIRST_WORDS = 64


class MaskFiller:
    """Computes the masks of many matchers at a time, on threads of its own."""

    def __init__(self, vocabulary: Vocabulary, num_threads: int | None = None) -> None:
        """num_threads: None: 80 % of the cores, at most 32."""
        self._vocabulary = vocabulary
        self._executor = LLExecutor(num_threads)

    def fill(self, matchers: Sequence[Matcher | None], masks: Masks) -> list[int]:
        """Writes the mask of each matcher into its row; None allows every token. Drops the GIL while it computes.

        masks: [at least len(matchers), Grammars.num_mask_words], contiguous.

        Returns the rows whose matcher has failed, now or before: its `error` says why, and the row allows nothing that
        could be relied on.
        """
        live: list[int] = []
        first_rows: dict[object, int] = {}
        """The first row of each state: sequences that have not diverged share a mask."""
        shared: list[tuple[int, int]] = []
        for row, matcher in enumerate(matchers):
            if matcher is None:
                masks[row] = -1
            elif matcher.num_ended or matcher.error:
                masks[row] = 0
                _set(masks[row], matcher.ends)
            elif (first := first_rows.setdefault(matcher.position or row, row)) == row:
                live.append(row)
            else:
                shared.append((row, first))
        if live:
            self._compute([(_ll_matcher(matchers[row]), row) for row in live], masks)
        for row, first in shared:
            masks[row] = masks[first]
        # Most masks have a token among the first: only the others are looked through.
        has_tokens = np.any(masks[: len(matchers), :NUM_FIRST_WORDS], axis=1)
        for row, first in [*((row, row) for row in live), *shared]:
            self._finish(matchers[row], _ll_matcher(matchers[first]), masks[row], bool(has_tokens[row]))
        return [row for row, matcher in enumerate(matchers) if matcher is not None and matcher.error]

    def _compute(self, live: list[tuple[LLMatcher, int]], masks: Masks) -> None:
        num_words = self._vocabulary.num_own_mask_words
        if masks.shape[1] == num_words:
            fill_next_token_bitmask_par(self._executor, live, masks)
            return
        wide = np.empty((len(masks), num_words), dtype=np.int32)
        fill_next_token_bitmask_par(self._executor, live, wide)
        for _, row in live:
            masks[row] = wide[row, : masks.shape[1]]

    def advance(self, matchers: Sequence[Matcher], token_ids: Sequence[list[int]]) -> None:
        """Has each matcher take in its tokens, as Matcher.advance does. Drops the GIL for those that take in one."""
        ones: list[tuple[Matcher, int]] = []
        for matcher, new in zip(matchers, token_ids, strict=True):
            if len(new) == 1 and matcher.is_inside(new[0]):
                ones.append((matcher, new[0]))
            elif new:
                matcher.advance(new)
        if not ones:
            return
        taken = self._executor.consume_token_par([(matcher.ll_matcher, token_id) for matcher, token_id in ones])
        for (matcher, token_id), is_taken in zip(ones, taken, strict=True):
            if is_taken:
                matcher.note_taken((token_id,))
            else:
                matcher.fail(matcher.ll_matcher.get_error())

    def _finish(self, matcher: Matcher | None, ll_matcher: LLMatcher, mask: Masks, has_tokens: bool) -> None:
        """Takes over what llguidance found: an error, and the ends of the sequence where the grammar is complete.

        ll_matcher: the one that has computed the mask.
        """
        assert matcher is not None
        if ll_matcher.is_error():
            matcher.fail(ll_matcher.get_error())
        elif (matcher.extra_ends or matcher.dropped_ends) and ll_matcher.is_accepting():
            _clear(mask, matcher.dropped_ends)
            _set(mask, matcher.extra_ends)
        elif not (has_tokens or mask.any()):
            matcher.fail("the grammar allows no token of the vocabulary")


def _ll_matcher(matcher: Matcher | None) -> LLMatcher:
    assert matcher is not None
    return matcher.ll_matcher


def _set(mask: Masks, token_ids: Iterable[int]) -> None:
    words = mask.view(np.uint32)
    for token_id in token_ids:
        words[token_id // WORD_BITS] |= np.uint32(1 << token_id % WORD_BITS)


def _clear(mask: Masks, token_ids: Iterable[int]) -> None:
    words = mask.view(np.uint32)
    for token_id in token_ids:
        words[token_id // WORD_BITS] &= np.uint32(~(1 << token_id % WORD_BITS) & 0xFFFFFFFF)
