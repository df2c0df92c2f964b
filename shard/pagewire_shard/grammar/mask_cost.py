"""Refuses grammars whose masks cost too much, before a step has to wait for one."""

import random
import re
import time

import numpy as np
from llguidance import LLMatcher

from pagewire_shard.grammar.errors import TooCostly
from pagewire_shard.grammar.vocabulary import Vocabulary

COSTLY = re.compile(
    r"\blimits?\b|\bfuel\b|\bmax is\b|(?<!number )too (?:big|large|complex)|too many (?:items|expressions|states)",
    re.IGNORECASE,
)
"""What llguidance says when a limit is reached."""
NUM_WALKS = 2
WALK_TOKENS = 16
MAX_MASK_S = 0.004
"""Computing time of a mask, once its lexer has been there; most take 0.1 ms."""
NUM_COSTLY = 3
"""So many masks over MAX_MASK_S are no accident."""


def check_mask_cost(start: LLMatcher, vocabulary: Vocabulary) -> None:
    """Follows random texts of a grammar for some tokens. Raises TooCostly if masks take long or reach a limit."""
    choose = random.Random(0)
    num_costly = 0
    for _ in range(NUM_WALKS):
        matcher = start.deep_copy()
        for _ in range(WALK_TOKENS):
            mask = matcher.compute_bitmask()
            _check(matcher)
            num_costly += _mask_s(matcher) > MAX_MASK_S
            if num_costly >= NUM_COSTLY:
                raise TooCostly(f"the grammar is too ambiguous: a mask takes more than {MAX_MASK_S * 1e3:g} ms")
            token_id = _any_token(mask, vocabulary, choose)
            if token_id is None or matcher.is_error():
                break
            matcher.consume_token(token_id)
            _check(matcher)


def _mask_s(matcher: LLMatcher) -> float:
    """Computing time of a mask that was computed before."""
    again = matcher.deep_copy()
    since_s = time.thread_time()
    again.compute_bitmask()
    return time.thread_time() - since_s


def _any_token(mask: bytes, vocabulary: Vocabulary, choose: random.Random) -> int | None:
    """A token that is allowed and does not end the text; None: there is none."""
    bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little")
    bits[list(vocabulary.eos_token_ids)] = 0
    token_ids = np.flatnonzero(bits)
    return int(token_ids[choose.randrange(len(token_ids))]) if len(token_ids) else None


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error() and COSTLY.search(error := matcher.get_error()):
        raise TooCostly(f"the grammar is too ambiguous or too large: {error.strip().splitlines()[0]}")
