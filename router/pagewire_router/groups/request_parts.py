"""Splits a request of many sequences into parts, which run one after the other if a shard group is busy.

The sequences of a part are admitted together. If all of a wide request's were, nobody could overtake it while it waits
for so many free slots, and these would stand empty until the last of them is free.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

from pagewire.v1 import inference_pb2, shard_pb2

from pagewire_router.beams.search import Hypothesis
from pagewire_router.errors import RouterError
from pagewire_router.request import OutputSink, Request
from pagewire_router.scheduling.block_ledger import GroupLimits

MAX_SLOT_SHARE = 4
"""A part takes at most one of so many equal shares of a shard group's slots."""


def split(request: Request, limits: Iterable[GroupLimits], abort: Callable[[Request], None]) -> list[Request]:
    """The parts of a request, which is the first of them; the request alone if it is no larger than a part,
    or a beam search.

    Parts have the same prompt, arrival and sink. A sequence's seed follows from the request's seed and its own index,
    so that it yields the same tokens in whatever part it is.

    Args:
        limits: those of the shard groups that parts may go to, at least one.
        abort: ends a request whose output nobody wants; called with the request if one of its parts fails.
    """
    indices = request.sequence_indices
    n = len(indices)
    if n == 1 or request.beams is not None:
        return [request]
    size = min(min(group.num_fitting(request), max(1, group.max_num_seqs // MAX_SLOT_SHARE)) for group in limits)
    if n <= size:
        return [request]
    sink = _PartsSink(request.sink, lambda: abort(request))
    # What belongs to the prompt is told once, with the first part.
    params = inference_pb2.SamplingParams()
    params.CopyFrom(request.params)
    params.ClearField("prompt_logprobs")
    request.sink, request.indices = sink, indices[:size]
    request.other_parts = [
        replace(request, indices=indices[first : first + size], params=params, timeline=None)
        for first in range(size, n, size)
    ]
    return [request, *request.other_parts]


class _PartsSink:
    """Implements OutputSink for all parts of a request. The first failure of a part is the request's."""

    def __init__(self, sink: OutputSink, end: Callable[[], None]) -> None:
        """end: ends all parts that still run."""
        self._sink = sink
        self._end = end
        self._has_failed = False

    def on_prompt_scores(self, scores: shard_pb2.PromptScores) -> None:
        """See OutputSink."""
        if not self._has_failed:
            self._sink.on_prompt_scores(scores)

    def on_tokens(self, index: int, token_ids: list[int], logprobs: list[shard_pb2.SequenceLogprobs] | None) -> bool:
        """See OutputSink. After a failure a sequence that has not been ended yet ends here."""
        return self._has_failed or self._sink.on_tokens(index, token_ids, logprobs)

    def on_finished(
        self, index: int, reason: "inference_pb2.FinishReason.ValueType", stop_token_id: int | None, num_cached: int
    ) -> None:
        """See OutputSink."""
        if not self._has_failed:
            self._sink.on_finished(index, reason, stop_token_id, num_cached)

    def on_beams(self, hypotheses: list[Hypothesis], num_cached: int) -> None:
        """See OutputSink. No part is a beam search."""
        raise NotImplementedError

    def on_failed(self, error: RouterError) -> None:
        """See OutputSink."""
        if not self._has_failed:
            self._has_failed = True
            self._end()
            self._sink.on_failed(error)
