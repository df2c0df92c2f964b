"""Counts the tokens of reasoning, for the token counts of answers."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pagewire_router.parsing.events import Event, ReasoningDelta
from pagewire_router.parsing.syntax import ReasoningFormat


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    """The marks of reasoning where each of them is one token."""

    opening_id: int
    closing_ids: frozenset[int]

    @staticmethod
    def of(format: ReasoningFormat | None, token_ids: Mapping[str, int]) -> "ReasoningMarks | None":
        """The marks of a format; None: it has none, or they are no tokens.

        Args:
            token_ids: ids by text of the tokens beside the vocabulary proper.
        """
        if format is None or not {format.opening, *format.closings} <= token_ids.keys():
            return None
        return ReasoningMarks(token_ids[format.opening], frozenset(token_ids[text] for text in format.closings))


class ReasoningTokens:
    """The count of one sequence. Marks are not counted.

    Without marks that are tokens it is an estimate: of tokens that came together, the share that their text has.
    """

    __slots__ = ("_is_open", "_marks", "num")

    def __init__(self, marks: ReasoningMarks | None, *, is_open: bool) -> None:
        """is_open: the prompt has begun the reasoning."""
        self._marks = marks
        self._is_open = is_open
        self.num = 0

    def add(self, text: str, token_ids: Sequence[int], events: Sequence[Event]) -> None:
        """Counts the next tokens, which have this text and say these events."""
        if self._marks is None:
            self._add_share(text, token_ids, events)
        elif self._is_open or self._marks.opening_id in token_ids:
            self._add_marked(self._marks, list(token_ids))

    def _add_marked(self, marks: ReasoningMarks, token_ids: list[int]) -> None:
        position = 0
        while position < len(token_ids):
            ends: Collection[int] = marks.closing_ids if self._is_open else (marks.opening_id,)
            found = [token_ids.index(end, position) for end in ends if end in token_ids[position:]]
            end = min(found, default=len(token_ids))
            self.num += end - position if self._is_open else 0
            self._is_open = self._is_open is not bool(found)
            position = end + 1

    def _add_share(self, text: str, token_ids: Sequence[int], events: Sequence[Event]) -> None:
        num_chars = sum([len(event.text) for event in events if isinstance(event, ReasoningDelta)])
        if text:
            self._is_open = bool(events) and isinstance(events[-1], ReasoningDelta)
            self.num += round(len(token_ids) * min(1.0, num_chars / len(text)))
        elif self._is_open:
            self.num += len(token_ids)
