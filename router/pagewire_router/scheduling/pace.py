"""How long steps take, learned from those that ran: the time of a step as a function of what it computes."""

import math

MEMORY_S = 10.0
"""A step counts for less the longer ago it ran: by a factor e after so much time of steps ..."""
MEMORY_STEPS = 256
"""... or after so many steps, whichever is sooner."""
MIN_STEPS, MIN_STEPS_S = 16, 1.0
"""Fewer steps, in less time, say little about larger ones."""
IDLE_S = 5.0
"""After so long without a step nothing is known any more: what slowed the last steps may be over."""
MAX_SURPRISE = 20.0
"""A step counts as at most so many times what was expected: one stall must not outweigh all others."""


class Pace:
    """Fits `seconds = base + per_row * rows + per_prompt_token * prompt tokens` to recent steps.

    A least-squares fit with fading memory whose coefficients are kept at zero or above. Every step moves each of them
    once towards its best value (coordinate descent), which costs a few microseconds; where the steps do not tell two
    coefficients apart, both stay near what they were.
    """

    def __init__(self) -> None:
        self._last_s = -math.inf
        self.clear()

    def clear(self) -> None:
        """Forgets all steps."""
        self.is_known = False
        """A step was measured, not too long ago as of the last one."""
        self.max_rows = 0
        """Rows of the largest step."""
        self.base_s = self.per_row_s = self.per_prompt_token_s = 0.0
        self._weight = 0.0
        self._rows = self._rows_rows = 0.0
        self._prompt = self._prompt_prompt = self._rows_prompt = 0.0
        self._time = self._time_rows = self._time_prompt = 0.0

    def add(self, now: float, seconds: float, num_rows: int, num_prompt_tokens: int) -> None:
        """A step that ended now took so long for num_rows sampled tokens and num_prompt_tokens others."""
        if self.is_stale(now):
            self.clear()
        self._last_s = now
        if self.is_known:
            seconds = min(seconds, MAX_SURPRISE * self.step_s(num_rows, num_prompt_tokens) + 1e-4)
        self.max_rows = max(self.max_rows, num_rows)
        self._note(seconds, num_rows, num_prompt_tokens)
        self._fit()
        self.is_known = True

    @property
    def is_settled(self) -> bool:
        """Enough steps were measured, in number or time, to tell rows, prompts and the rest apart."""
        return self._weight >= MIN_STEPS or self._time >= MIN_STEPS_S

    def is_stale(self, now: float) -> bool:
        """The last step was too long ago to say anything about the next."""
        return now - self._last_s > IDLE_S

    def step_s(self, num_rows: float, num_prompt_tokens: float = 0.0) -> float:
        """Returns how long such a step takes; 0 while the pace is unknown."""
        return self.base_s + num_rows * self.per_row_s + num_prompt_tokens * self.per_prompt_token_s

    def typical_step_s(self, num_rows: float) -> float:
        """Returns how long a step takes that also computes the recent average of prompt tokens."""
        return self.step_s(num_rows, self._prompt / self._weight if self._weight else 0.0)

    def caution(self, num_rows: int) -> float:
        """Returns the factor by which a step may be longer than the fit says, for more rows than were measured."""
        return max(1.0, num_rows / self.max_rows) if self.max_rows else 1.0

    @property
    def worthwhile_rows(self) -> float:
        """Number of rows that yields two thirds of the highest possible tokens per second."""
        return 2 * self.base_s / self.per_row_s if self.per_row_s else math.inf

    def _note(self, seconds: float, rows: int, prompt: int) -> None:
        keep = math.exp(-max(seconds / MEMORY_S, 1.0 / MEMORY_STEPS))
        self._weight = keep * self._weight + 1.0
        self._rows = keep * self._rows + rows
        self._prompt = keep * self._prompt + prompt
        self._rows_rows = keep * self._rows_rows + rows * rows
        self._rows_prompt = keep * self._rows_prompt + rows * prompt
        self._prompt_prompt = keep * self._prompt_prompt + prompt * prompt
        self._time = keep * self._time + seconds
        self._time_rows = keep * self._time_rows + seconds * rows
        self._time_prompt = keep * self._time_prompt + seconds * prompt

    def _fit(self) -> None:
        """Rows first: what few steps do not tell apart then counts as growing with the batch: the safe guess."""
        if self._rows_rows > 1e-9:
            rest = self._time_rows - self.base_s * self._rows - self.per_prompt_token_s * self._rows_prompt
            self.per_row_s = max(0.0, rest / self._rows_rows)
        if self._prompt_prompt > 1e-9:
            rest = self._time_prompt - self.base_s * self._prompt - self.per_row_s * self._rows_prompt
            self.per_prompt_token_s = max(0.0, rest / self._prompt_prompt)
        rest = self._time - self.per_row_s * self._rows - self.per_prompt_token_s * self._prompt
        self.base_s = max(0.0, rest / self._weight)
