"""Finding stop strings in streamed text without ever sending part of one."""


class StopStrings:
    """Finds the first of several strings in a text that arrives in pieces.

    First is the one that is complete first; of two that end together, the one that begins first. This does not depend
    on how the text is cut into pieces, and no completed match has to wait for a longer one.
    """

    __slots__ = ("_held", "_include", "_stops", "matched")

    def __init__(self, stops: tuple[str, ...], *, include_in_output: bool) -> None:
        assert stops
        assert all(stops)
        self._stops = stops
        self._include = include_in_output
        self._held = ""
        self.matched: str | None = None
        """The string that was found."""

    def pass_over(self, text: str) -> str:
        """Takes the next piece, in which no stop string may end, and returns the text that may be sent.

        A stop string may begin in it: what could be its beginning is held.
        """
        return self._hold(self._held + text)

    def feed(self, text: str) -> str:
        """Takes the next piece and returns the text that may be sent: it holds no part of a stop string.

        After a match the rest of the text is dropped.
        """
        if self.matched is not None:
            return ""
        # A stop string that lies within the held text alone was passed over.
        num_held = len(self._held)
        text = self._held + text
        match = min(
            (
                (start + len(stop), start, stop)
                for stop in self._stops
                if (start := text.find(stop, max(0, num_held - len(stop) + 1))) >= 0
            ),
            default=None,
        )
        if match is not None:
            end, start, self.matched = match
            self._held = ""
            return text[: end if self._include else start]
        return self._hold(text)

    def flush(self) -> str:
        """The text has ended: returns what was held back, since no stop string can be completed any more."""
        held, self._held = self._held, ""
        return held

    def _hold(self, text: str) -> str:
        """Keeps the end of the text that may become a stop string, and returns what comes before it."""
        num_sure = self._first_possible_start(text)
        self._held = text[num_sure:]
        return text[:num_sure]

    def _first_possible_start(self, text: str) -> int:
        """Where the longest end of the text begins that is the beginning of a stop string."""
        first = len(text)
        for stop in self._stops:
            start = text.find(stop[0], max(0, len(text) - len(stop) + 1), first)
            while start >= 0:
                if stop.startswith(text[start:]):
                    first = start
                    break
                start = text.find(stop[0], start + 1, first)
        return first
