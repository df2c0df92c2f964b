"""Matchers follow the tokens of sequences, and masks say which may come next."""

import json
import random
import time

import grpc
import numpy as np
import pytest
from grammar_world import (
    EOS,
    NUM_TOKENS,
    STOP,
    TIMEOUT_S,
    allowed,
    allowed_next,
    encode,
    masks,
    outputs,
    prepare,
    texts,
)
from pagewire_shard.grammar.errors import GrammarNotReady
from pagewire_shard.grammar.masks import MaskFiller
from pagewire_shard.grammar.matcher import Matcher


def test_masks_allow_what_may_come_next(grammars, start):
    matcher = start(choice=["yes", "no"])
    assert all(
        text and ("yes".startswith(text) or "no".startswith(text)) for text in texts(allowed_next(grammars, matcher))
    )
    assert matcher.advance(encode("y"))
    assert not matcher.is_finished
    assert matcher.advance(encode("es"))
    assert matcher.is_finished
    assert allowed_next(grammars, matcher) == [EOS]


def test_the_end_is_allowed_where_the_grammar_is_complete(grammars, start):
    matcher = start(regex="a+")
    assert EOS not in allowed_next(grammars, matcher)
    matcher.advance(encode("a"))
    assert EOS in allowed_next(grammars, matcher)
    assert not matcher.is_finished
    assert matcher.advance([EOS])
    assert matcher.is_finished


def test_stop_tokens_of_the_request_are_ends_too(grammars, start):
    matcher = start(regex="a+", end_token_ids=(EOS, STOP))
    assert STOP not in allowed_next(grammars, matcher)
    matcher.advance(encode("a"))
    assert {EOS, STOP} <= set(allowed_next(grammars, matcher))


def test_a_sequence_that_ignores_the_end_goes_on_as_long_as_the_grammar_does(grammars, start):
    matcher = start(regex="a{1,2}", end_token_ids=(STOP,))
    matcher.advance(encode("a"))
    assert EOS not in allowed_next(grammars, matcher)
    assert STOP in allowed_next(grammars, matcher)
    matcher.advance(encode("a"))
    assert allowed_next(grammars, matcher) == [STOP]


def test_a_sequence_without_any_end_repeats_the_end_of_sequence_token(grammars, start):
    matcher = start(regex="aa", end_token_ids=())
    matcher.advance(encode("aa"))
    for _ in range(3):
        assert allowed_next(grammars, matcher) == [EOS]
        assert matcher.advance([EOS])
    assert matcher.rollback(3)
    assert allowed_next(grammars, matcher) == [EOS]


def test_tokens_that_the_grammar_does_not_allow_are_an_error_that_stays(grammars, start):
    matcher = start(regex="a+")
    assert not matcher.advance(encode("b"))
    assert "doesn't satisfy the grammar" in matcher.error
    assert not matcher.advance(encode("a"))
    assert not matcher.is_finished


def test_nothing_but_ends_follows_an_end(start):
    matcher = start(regex="a+")
    assert matcher.advance([*encode("a"), EOS])
    assert not matcher.advance(encode("a"))
    assert matcher.error


def test_a_fork_goes_its_own_way(grammars, start):
    matcher = start(choice=["ab", "ac"])
    matcher.advance(encode("a"))
    fork = matcher.fork()
    assert matcher.advance(encode("b"))
    assert fork.advance(encode("c"))
    assert matcher.is_finished
    assert fork.is_finished


def test_rollback_takes_tokens_back(grammars, start):
    matcher = start(choice=["ab", "ac"])
    before = allowed_next(grammars, matcher)
    assert matcher.advance(encode("a"))
    assert matcher.advance(encode("b"))
    assert matcher.advance([EOS])
    assert matcher.rollback(2)
    assert matcher.advance(encode("c"))
    assert matcher.rollback(2)
    assert allowed_next(grammars, matcher) == before
    assert not matcher.rollback(1)


def test_rows_fail_alone_and_rows_without_a_matcher_allow_everything(grammars, start):
    good, bad = start(regex="a+"), start(regex="a+")
    bad.advance(encode("b"))
    rows = masks(grammars, 4)
    rows[1] = 0
    assert grammars.fill_masks([good, None, bad, good.fork()], rows) == [2]
    assert set(encode("a")) <= set(allowed(rows[0]))
    assert len(allowed(rows[1])) >= NUM_TOKENS
    assert np.array_equal(rows[0], rows[3])


def test_masks_have_the_width_of_the_logits(grammars):
    assert grammars.num_mask_words == NUM_TOKENS // 32


def test_tokens_come_back_one_by_one_or_at_once(grammars, start):
    text = encode('{"a": [1, 2, {"b": null}]')
    at_once, one_by_one = start(json_object=True), start(json_object=True)
    assert at_once.advance(text)
    assert all(one_by_one.advance([token]) for token in text)
    assert allowed_next(grammars, at_once) == allowed_next(grammars, one_by_one)


def test_a_name_is_ready_from_prepare_to_forget(grammars):
    with pytest.raises(GrammarNotReady, match="'g'"):
        grammars.matcher("g", (EOS,))
    assert prepare(grammars, "g", outputs(regex="a")).code is grpc.StatusCode.OK
    matcher = grammars.matcher("g", (EOS,))
    grammars.forget(["g", "unknown"])
    with pytest.raises(GrammarNotReady):
        grammars.matcher("g", (EOS,))
    assert matcher.advance(encode("a"))
    prepare(grammars, "g", outputs(regex="a"))
    grammars.end_epoch()
    with pytest.raises(GrammarNotReady):
        grammars.matcher("g", (EOS,))


def test_a_grammar_whose_lexer_is_full_is_built_anew_for_those_who_come_later(grammars, start):
    """All sequences of a grammar share a lexer, and what one of them generates may bring it to its limit."""
    prefix = "z" * 100  # longer than what is followed before a grammar is served
    grammar = f'start: "{prefix}" X\n' + "X: ~/(.*a.{40}b.*)/ & ~/(.*b.{41}a.*)/ & /.{0,5000}/"
    choose = random.Random(0)

    def follow(matcher: Matcher, num_tokens: int) -> bool:
        """Returns whether the grammar allowed so many tokens."""
        row = masks(grammars, 1)
        for _ in range(num_tokens):
            if grammars.fill_masks([matcher], row):
                return False
            matcher.advance([choose.choice([token for token in allowed(row[0]) if token > STOP])])
        return True

    first = start(grammar=grammar)
    assert not follow(first, 200)
    assert "lexer" in first.error
    deadline_s = time.monotonic() + TIMEOUT_S
    while not (matcher := start(grammar=grammar)).advance(encode(prefix)) or not follow(matcher, 2):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_sequences_that_have_not_diverged_share_the_computation_of_a_mask(grammars, start, monkeypatch):
    computed: list[int] = []
    compute = MaskFiller._compute
    monkeypatch.setattr(MaskFiller, "_compute", lambda s, live, m: (computed.append(len(live)), compute(s, live, m)))
    first = start(regex="[ab]+c?")
    matchers = [first, first.fork(), start(regex="[ab]+c?", end_token_ids=(STOP,)), start(regex="[ab]+")]
    together = masks(grammars, len(matchers))
    grammars.fill_masks(matchers, together)
    grammars.advance(matchers, [encode("a")] * 4)
    grammars.fill_masks(matchers, together)
    assert computed == [2, 2]
    for matcher, mask in zip(matchers, together, strict=True):
        assert allowed(mask) == allowed_next(grammars, matcher)
    assert EOS in allowed(together[0])
    assert EOS not in allowed(together[2])
    assert STOP in allowed(together[2])
    matchers[1].advance(encode("b"))
    computed.clear()
    grammars.fill_masks(matchers[:2], together)
    assert computed == [2]


def test_matchers_that_share_a_mask_fail_together(grammars, start):
    matchers = [start(regex="a+") for _ in range(2)]
    for matcher in matchers:
        matcher.ll_matcher.consume_tokens(encode("x"))
    assert grammars.fill_masks(matchers, masks(grammars, 2)) == [0, 1]


def test_an_ambiguous_grammar_is_refused_before_it_is_served(grammars):
    tails = "\n".join(f'x{i}: "a" | "a" s' for i in range(60))
    grammar = "start: s\ns: " + " | ".join(f"x{i} s" for i in range(60)) + f' | "a"\n{tails}'
    answer = prepare(grammars, "ambiguous", outputs(grammar=grammar))
    assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "ambiguous" in answer.message


def test_objects_with_many_optional_properties_are_followed(grammars, start):
    matcher = start(json=json.dumps({"properties": {f"p{i}": {"type": ["string", "null"]} for i in range(200)}}))
    assert matcher.advance(encode('{"p0":"abc","p199":null'))
    assert allowed_next(grammars, matcher)
