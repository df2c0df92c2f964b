"""Stop strings: found wherever the text is cut, and never sent in part."""

import time

from hypothesis import given
from hypothesis import strategies as st
from pagewire_router.text.stop_strings import StopString, StopStrings

TEXT = st.text("ab\n", max_size=20)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=5), min_size=1, max_size=3).map(tuple)


def matcher_of(*stops, include=False):
    return StopStrings(map(StopString, stops), include_in_output=include)


def run(pieces, stops, include, passed_over=()):
    matcher = matcher_of(*stops, include=include)
    sent = "".join([matcher.pass_over(piece) for piece in passed_over])
    for piece in pieces:
        sent += matcher.feed(piece)
        if matcher.matched is not None:
            return sent, matcher.matched
    return sent + matcher.flush(), None


def expected(text, stops, include, num_passed_over=0):
    """The definition: read character by character, stop at the first that completes a stop string, the longest.

    The first num_passed_over characters complete none.
    """
    for end in range(num_passed_over + 1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@given(pieces=st.lists(TEXT, max_size=8), stops=STOPS, include=st.booleans())
def test_result_does_not_depend_on_how_the_text_is_cut(pieces, stops, include):
    assert run(pieces, stops, include) == expected("".join(pieces), stops, include)


@given(passed_over=st.lists(TEXT, max_size=4), pieces=st.lists(TEXT, max_size=4), stops=STOPS, include=st.booleans())
def test_a_stop_string_may_begin_in_what_is_passed_over_but_not_end_there(passed_over, pieces, stops, include):
    text = "".join(passed_over)
    assert run(pieces, stops, include, passed_over) == expected(text + "".join(pieces), stops, include, len(text))


@given(pieces=st.lists(TEXT, max_size=8), stops=STOPS)
def test_no_part_of_a_possible_stop_string_is_sent(pieces, stops):
    matcher = matcher_of(*stops)
    text = pieces.pop() if pieces else ""
    sent = matcher.pass_over(text)
    for piece in pieces:
        text += piece
        sent += matcher.feed(piece)
        if matcher.matched is not None:
            return
        # A stop string that has ended within the text that was passed over is none any more.
        possible_starts = [
            n
            for n in range(len(text))
            if any(stop.startswith(text[n:]) and len(stop) > len(text) - n for stop in stops)
        ]
        assert len(sent) <= min(possible_starts, default=len(text))


@given(pieces=st.lists(TEXT, max_size=8), stops=STOPS)
def test_no_more_is_held_than_needed(pieces, stops):
    matcher = matcher_of(*stops)
    text = sent = ""
    for piece in pieces:
        text += piece
        sent += matcher.feed(piece)
        if matcher.matched is not None:
            return
        held = text[len(sent) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_after_a_match_the_rest_is_dropped():
    matcher = matcher_of("END")
    assert matcher.feed("a E") == "a "
    assert matcher.feed("ND b") == ""
    assert matcher.feed("c") == ""
    assert matcher.flush() == ""
    assert matcher.matched == "END"


def test_strings_that_begin_alike_do_not_make_tokens_slow():
    stops = ["a" * num_alike + "b" * (1024 - num_alike) for num_alike in range(960, 1024)]
    matcher = matcher_of(*stops)
    began_s = time.monotonic()
    assert matcher.feed("a" * 1023) == ""
    sent = "".join(matcher.feed("a") for _ in range(1000))
    assert sent == "a" * 1000
    assert matcher.feed("c") == "a" * 1023 + "c"
    assert time.monotonic() - began_s < 2, "every place is tried again for every token"


def test_sequences_of_a_request_share_strings_but_no_state():
    stops = [StopString("abab"), StopString("b")]
    first, second = (StopStrings(stops, include_in_output=False) for _ in range(2))
    assert first.pass_over("xaba") == "x"
    assert second.feed("ab") == "a"
    assert second.matched == "b"
    assert first.feed("b") == ""
    assert first.matched == "abab"
