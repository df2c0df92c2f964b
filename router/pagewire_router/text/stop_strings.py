"""Finds stop strings in streamed text, and never lets part of one out.

Strings are compiled once for each request, for all of its sequences. The time for each character of the text is bounded
for all strings and texts: clients choose both, and the event loop serves all other requests too.
"""

from collections.abc import Iterable


class StopString:
    """One string as a Knuth-Morris-Pratt automaton, which is built as far as texts have matched it."""

    __slots__ = ("_border", "_fallbacks", "text")

    def __init__(self, text: str) -> None:
        assert text
        self.text = text
        self._fallbacks = [-1]
        """fallbacks[k]: how many characters to compare next from when k are matched and the next one differs; -1: drop
        that character too. The entry for the whole string says how many stay matched after it."""
        self._border = -1
        """Length of the longest proper suffix of the characters with fallbacks that is also their prefix."""

    def advance(self, num_matched: int, text: str, *, may_end: bool) -> tuple[int, int]:
        """Takes the next piece of a text.

        Args:
            num_matched: characters of the string that the text before the piece ends with.
            may_end: whether the string may be completed within the piece.

        Returns:
            The characters of the string that are matched after the piece, and the length of the part of the piece with
            which the string is first complete; 0: it is not complete.
        """
        stop, fallbacks, position = self.text, self._fallbacks, 0
        while position < len(text):
            if num_matched == 0:
                position = text.find(stop[0], position)
                if position < 0:
                    return 0, 0
            character = text[position]
            position += 1
            while num_matched >= 0 and stop[num_matched] != character:
                num_matched = fallbacks[num_matched]
            num_matched += 1
            if num_matched == len(fallbacks):
                self._extend()
            if num_matched == len(stop):
                if may_end:
                    return num_matched, position
                num_matched = fallbacks[num_matched]
        return num_matched, 0

    def _extend(self) -> None:
        """Adds the fallback for one more matched character."""
        stop, fallbacks, border = self.text, self._fallbacks, self._border
        num_matched = len(fallbacks)
        while border >= 0 and stop[border] != stop[num_matched - 1]:
            border = fallbacks[border]
        self._border = border = border + 1
        is_next_the_same = num_matched < len(stop) and stop[border] == stop[num_matched]
        fallbacks.append(fallbacks[border] if is_next_the_same else border)


class StopStrings:
    """Finds the first of several strings in a text that arrives in pieces.

    The first string is the one that is complete first; of two that end together, the one that begins first. The result
    does not depend on how the text is cut into pieces, and a completed match does not wait for a longer one.
    """

    __slots__ = ("_held", "_include", "_num_matched", "_stops", "matched")

    def __init__(self, stops: Iterable[StopString], *, include_in_output: bool) -> None:
        self._stops = tuple(stops)
        assert self._stops
        self._include = include_in_output
        self._held = ""
        self._num_matched = [0] * len(self._stops)
        """For each string, the number of its characters that the text ends with."""
        self.matched: str | None = None
        """The string that was found; None: none yet."""

    def pass_over(self, text: str) -> str:
        """Takes the next piece, in which no stop string may end, and returns the text that may be sent.

        A stop string may begin in the piece, so text that could be its beginning is held back.
        """
        self._advance(text, may_end=False)
        return self._hold(text)

    def feed(self, text: str) -> str:
        """Takes the next piece and returns the text that may be sent, which holds no part of a stop string.

        Text after a match is dropped.
        """
        if self.matched is not None:
            return ""
        match = self._advance(text, may_end=True)
        if match is None:
            return self._hold(text)
        num_chars, stop = match
        text = self._held + text[:num_chars]
        self._held, self.matched = "", stop
        return text if self._include else text[: -len(stop)]

    def flush(self) -> str:
        """The text has ended: returns what was held back, since no stop string can be completed any more."""
        held, self._held = self._held, ""
        return held

    def _advance(self, text: str, *, may_end: bool) -> tuple[int, str] | None:
        """The string that is complete first, after the number of characters of the piece at which it ends."""
        first: tuple[int, str] | None = None
        num_matched = self._num_matched
        for index, stop in enumerate(self._stops):
            if not num_matched[index] and stop.text[0] not in text:
                continue
            num_matched[index], end = stop.advance(num_matched[index], text, may_end=may_end)
            if end and (first is None or (end, -len(stop.text)) < (first[0], -len(first[1]))):
                first = end, stop.text
        return first

    def _hold(self, text: str) -> str:
        """Holds back the end of the text that may become a stop string, and returns what comes before it."""
        num_held = max(self._num_matched)
        if not num_held and not self._held:
            return text
        text = self._held + text
        num_sure = len(text) - num_held
        self._held = text[num_sure:]
        return text[:num_sure]
