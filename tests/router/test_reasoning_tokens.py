"""The token counts of reasoning."""

import pytest
from pagewire_router.parsing.events import ContentDelta, ReasoningDelta
from pagewire_router.parsing.formats import REASONING_FORMATS
from pagewire_router.parsing.reasoning_tokens import ReasoningMarks, ReasoningTokens

THINK = next(format for format in REASONING_FORMATS if format.name == "think")
MARKS = ReasoningMarks.of(THINK, {"<think>": 8, "</think>": 9})


@pytest.mark.parametrize(
    ("token_ids", "is_open", "num"),
    [
        ([8, 1, 2, 3, 9, 4], False, 3),
        ([1, 2, 9, 4, 5], True, 2),
        ([1, 2, 3], True, 3),
        ([1, 2, 9, 3], False, 0),
        ([8, 9, 1], False, 0),
        ([8, 1, 9, 2, 8, 3, 3, 9, 1], False, 3),
        ([9, 9, 1], True, 0),
        ([], True, 0),
    ],
    ids=str,
)
def test_tokens_between_the_marks_are_counted_however_they_come(token_ids, is_open, num):
    for size in (1, 2, 3, 100):
        counted = ReasoningTokens(MARKS, is_open=is_open)
        for start in range(0, len(token_ids), size):
            counted.add("x", token_ids[start : start + size], ())
        assert counted.num == num, size


def test_marks_that_are_no_tokens_leave_an_estimate():
    assert ReasoningMarks.of(THINK, {"<think>": 8}) is None
    assert ReasoningMarks.of(None, {}) is None
    counted = ReasoningTokens(None, is_open=False)
    counted.add("aaaabbbb", [1] * 8, [ReasoningDelta("aaaa"), ContentDelta("bbbb")])
    assert counted.num == 4
    counted.add("cc", [1, 1], [ContentDelta("cc")])
    counted.add("", [1], [])
    assert counted.num == 4
    counted = ReasoningTokens(None, is_open=True)
    counted.add("", [1], [])
    counted.add("aa", [1, 1], [ReasoningDelta("aa")])
    assert counted.num == 3
