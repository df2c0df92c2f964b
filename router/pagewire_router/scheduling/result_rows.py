"""Takes in the rows of a step's result: what every sequence of the plan computed and sampled.

The cost is linear in the rows of the plan, and this runs for every step.
"""

from collections.abc import Callable

from pagewire.v1 import inference_pb2, shard_pb2

from pagewire_router.scheduling.plans import PlanInFlight, Progress
from pagewire_router.scheduling.residents import Residents
from pagewire_router.scheduling.sequence import Sequence, SequenceGroup
from pagewire_router.scheduling.sequence_state import SequenceState

_UNFINISHED = inference_pb2.FINISH_REASON_UNSPECIFIED
_STOP, _LENGTH = inference_pb2.FINISH_REASON_STOP, inference_pb2.FINISH_REASON_LENGTH
_STOP_TOKEN = shard_pb2.STOP_REASON_TOKEN
_FAILURES = (shard_pb2.STOP_REASON_ERROR, shard_pb2.STOP_REASON_GRAMMAR, shard_pb2.STOP_REASON_PROCESSOR)

Finish = Callable[[Sequence, "inference_pb2.FinishReason.ValueType"], None]


def take_rows(
    plan: PlanInFlight, result: shard_pb2.StepResult, residents: Residents, finish: Finish
) -> tuple[list[Progress], list[SequenceGroup], int]:
    """Brings the sequences of the plan up to date; those that the shard has stopped are ended through `finish`.

    Returns what the rows brought, in their order; the requests that found less in the prefix cache than was guessed,
    for the first time; and the number of tokens sampled for sequences that had not ended.
    """
    logprobs: dict[int, list[shard_pb2.SequenceLogprobs]] = {}
    for entry in result.logprobs:
        logprobs.setdefault(entry.run_index, []).append(entry)
    sampled = list(result.sampled_token_ids)
    start = num_dropped = 0
    running = SequenceState.RUNNING
    missed: list[SequenceGroup] = []
    progress: list[Progress] = []
    for row, (sequence, num_computed, num_tokens, num_sampled, stop, shared) in enumerate(
        zip(
            plan.sequences,
            result.num_computed_tokens,
            result.num_known_tokens,
            result.num_sampled_tokens,
            result.stop_reasons,
            result.next_write_block_shared,
            strict=True,
        )
    ):
        sequence.num_inflight_runs -= 1
        if sequence.state is running:
            sequence.num_reported_computed_tokens = num_computed
            if num_computed > sequence.num_held_tokens or shared != sequence.next_write_block_shared:
                residents.on_row(sequence, num_computed, shared, result.step)
        elif sequence.state is SequenceState.ADMITTED:
            if sequence.num_missed_tokens(num_computed) and not sequence.group.is_misguessed:
                missed.append(sequence.group)
            sequence.settle(num_computed, num_tokens)
            residents.on_row(sequence, num_computed, shared, result.step)
        else:
            if sequence.num_inflight_runs == 0:
                residents.ledger.forget(sequence)
            if sequence.is_finished:
                num_dropped += num_sampled
                start += num_sampled
                continue
        if num_sampled:
            token_ids = sampled[start : start + num_sampled]
            start += num_sampled
            sequence.append(token_ids, num_tokens - num_sampled)
            reason = _UNFINISHED
            if stop:
                reason = _STOP if stop == _STOP_TOKEN else _LENGTH
                finish(sequence, reason)
            progress.append(Progress(sequence, token_ids, logprobs.get(row), reason))
        elif stop in _FAILURES:
            row_failure = next((each for each in result.row_failures if each.run_index == row), None)
            progress.append(Progress.failed(sequence, stop, row_failure))
    return progress, missed, start - num_dropped
