"""Follows one request for the metrics: a few operations for each message, none for each token."""

from collections.abc import Callable

from pagewire_router.metrics import Metrics


class RequestTimer:
    """From a request's submission to its end."""

    __slots__ = ("_arrival_s", "_clock", "_last_output_s", "_metrics", "_num_sequences", "_num_tokens")

    def __init__(self, metrics: Metrics, clock: Callable[[], float], num_sequences: int, arrival_s: float) -> None:
        self._metrics = metrics
        self._clock = clock
        self._num_sequences = num_sequences
        self._arrival_s = arrival_s
        self._last_output_s: float | None = None
        self._num_tokens = 0
        metrics.num_waiting += 1

    def on_output(self, num_tokens: int) -> None:
        """A message is about to be written; num_tokens were sampled so far, over all sequences."""
        num_new = num_tokens - self._num_tokens
        if num_new <= 0:
            return
        self._num_tokens = num_tokens
        now_s = self._clock()
        if self._last_output_s is None:
            self._metrics.time_to_first_token_s.observe(now_s - self._arrival_s)
            self._metrics.num_waiting -= 1
            self._metrics.num_running += 1
        else:
            gap_s = (now_s - self._last_output_s) * self._num_sequences / num_new
            self._metrics.inter_token_s.observe(gap_s, num_new)
        self._last_output_s = now_s

    def on_end(self, num_tokens: int) -> None:
        """The request has ended, well or not."""
        if self._last_output_s is None:
            self._metrics.num_waiting -= 1
        else:
            self._metrics.num_running -= 1
        self._metrics.generation_tokens.inc(num_tokens)
        self._metrics.request_s.observe(self._clock() - self._arrival_s)
