"""Observes the times of one request: a few operations for each message, none for each token."""

from time import monotonic

from pagewire.v1 import inference_pb2

from pagewire_router.metrics.request_metrics import Metrics
from pagewire_router.output.output_buffer import OutputBuffer
from pagewire_router.request import Request

_REASON_NAMES = {
    inference_pb2.FINISH_REASON_STOP: "stop",
    inference_pb2.FINISH_REASON_LENGTH: "length",
    inference_pb2.FINISH_REASON_ABORT: "abort",
}


class RequestTimer:
    """Times one request from submission to end. Time to first token = admission + queue + prefill."""

    __slots__ = (
        "_first_output_s",
        "_last_output_s",
        "_metrics",
        "_num_parallel",
        "_num_tokens",
        "_request",
        "_submitted_s",
    )

    def __init__(self, metrics: Metrics, request: Request) -> None:
        self._metrics = metrics
        self._request = request
        self._num_parallel = len(request.sequence_indices)
        """Sequences that run at a time."""
        self._submitted_s = monotonic()
        self._first_output_s: float | None = None
        self._last_output_s = 0.0
        self._num_tokens = 0
        metrics.num_open += 1
        metrics.admission_s.observe(self._submitted_s - request.arrival_s)
        metrics.prompt_tokens.observe(len(request.prompt_token_ids))

    def on_written(self, num_tokens: int) -> None:
        """A message was written.

        num_tokens: tokens of all sequences that were written so far, or are about to be written in the same turn.
        """
        num_new = num_tokens - self._num_tokens
        if num_new <= 0:
            return
        self._num_tokens = num_tokens
        now_s = monotonic()
        if self._first_output_s is None:
            self._on_first(now_s)
        else:
            gap_s = (now_s - self._last_output_s) * self._num_parallel / num_new
            self._metrics.inter_token_s.observe(gap_s, num_new)
        self._last_output_s = now_s

    def _on_first(self, now_s: float) -> None:
        metrics, request = self._metrics, self._request
        self._first_output_s = now_s
        metrics.time_to_first_token_s.observe(now_s - request.arrival_s)
        if request.scheduled_s is not None:
            metrics.queue_s.observe(request.scheduled_s - self._submitted_s)
            metrics.prefill_s.observe(now_s - request.scheduled_s)

    def on_end(self, output: OutputBuffer) -> None:
        """The request has ended, with or without an error."""
        metrics, now_s = self._metrics, monotonic()
        metrics.num_open -= 1
        metrics.generation_tokens.observe(output.num_tokens)
        metrics.request_s.observe(now_s - self._request.arrival_s)
        if self._first_output_s is not None:
            metrics.decode_s.observe(now_s - self._first_output_s)
        else:
            # Requests that ended while they waited count too; without them a full queue would look short.
            scheduled_s = self._request.scheduled_s
            metrics.queue_s.observe((now_s if scheduled_s is None else scheduled_s) - self._submitted_s)
        unfinished = "abort" if output.error is None else "error"
        for reason in output.finish_reasons():
            metrics.num_finished[_REASON_NAMES.get(reason, unfinished)] += 1
