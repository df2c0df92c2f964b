"""How many tokens sequences really yield, by what they may yield at most: many stop long before max_tokens."""

from dataclasses import dataclass

MAX_COUNT = 64
"""An average is over about so many of the latest lengths."""
MEMORY_S = 60.0
"""An average without a new length for so long is forgotten."""


@dataclass(slots=True)
class _Average:
    value: float
    at_s: float
    count: int = 1


class OutputLengths:
    """Averages for each power of two of max_tokens. Times are on one clock, whichever."""

    def __init__(self) -> None:
        self._averages: dict[int, _Average] = {}

    def add(self, now: float, max_tokens: int, num_tokens: float) -> None:
        """A sequence that might have had max_tokens ended with num_tokens."""
        average = self._recent(now, max_tokens.bit_length())
        if average is None:
            self._averages[max_tokens.bit_length()] = _Average(num_tokens, now)
        else:
            average.count = min(average.count + 1, MAX_COUNT)
            average.value += (num_tokens - average.value) / average.count
            average.at_s = now

    def expected(self, now: float, max_tokens: int) -> float:
        """Tokens that such a sequence is likely to yield.

        While none has ended, the longest average of those with fewer max_tokens stands in, or else a single token: no
        request is to be refused for a length that was never seen.
        """
        average = self._recent(now, max_tokens.bit_length())
        if average is None:
            smaller = [self._recent(now, bucket) for bucket in range(max_tokens.bit_length())]
            return max((a.value for a in smaller if a is not None), default=1.0)
        return min(float(max_tokens), average.value)

    def _recent(self, now: float, bucket: int) -> _Average | None:
        average = self._averages.get(bucket)
        return None if average is None or now - average.at_s > MEMORY_S else average
