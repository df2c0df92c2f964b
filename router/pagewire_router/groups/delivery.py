"""Hands what results have brought to the sinks of requests."""

from pagewire.v1 import inference_pb2

from pagewire_router.request import OutputSink
from pagewire_router.scheduling.plans import Progress
from pagewire_router.scheduling.scheduler import Scheduler


def deliver(progress: Progress, scheduler: Scheduler) -> bool:
    """Hands over new tokens, and their end; log-probabilities of the prompt; or the beams of a search that is over.

    Finishes a sequence of which the sink says that a stop string ends it. Returns whether the request has ended.
    """
    sequence = progress.sequence
    group, reason = sequence.group, progress.finish_reason
    sink = group.request.sink
    if not progress.token_ids:
        return _deliver_other(progress, sink)
    stop_token_id = None
    if sink.on_tokens(sequence.index, progress.token_ids, progress.logprobs):
        reason = inference_pb2.FINISH_REASON_STOP
        scheduler.finish(sequence, reason)
    elif reason == inference_pb2.FINISH_REASON_STOP and progress.token_ids[-1] in group.request.params.stop_token_ids:
        stop_token_id = progress.token_ids[-1]
    if not reason:
        return False
    sink.on_finished(sequence.index, reason, stop_token_id, group.num_cached_tokens or 0)
    return group.is_finished


def _deliver_other(progress: Progress, sink: OutputSink) -> bool:
    """Hands over what is not the next tokens of a sequence."""
    if progress.prompt_scores is not None:
        sink.on_prompt_scores(progress.prompt_scores)
        return False
    assert progress.hypotheses is not None
    sink.on_beams(progress.hypotheses, progress.sequence.group.num_cached_tokens or 0)
    return True
