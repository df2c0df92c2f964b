"""Plans of beam search. The beams of a request are admitted, run, preempted and resumed as one.

All beams have as many tokens, so that they are scored in the same plan, if it has tokens left for all of them. When all
scores are back, the search takes a step: beams that do not go on are released with the next plan, the others as soon as
there are blocks for the beams forked from them.
"""

from collections.abc import Callable

from pagewire.v1 import inference_pb2, shard_pb2

from pagewire_router.scheduling.plans import PlanInFlight, Progress, TokenCounts
from pagewire_router.scheduling.residents import Residents
from pagewire_router.scheduling.sequence import Sequence, SequenceGroup
from pagewire_router.scheduling.sequence_state import SequenceState

_STOP, _LENGTH = inference_pb2.FINISH_REASON_STOP, inference_pb2.FINISH_REASON_LENGTH
_ERROR, _NO_GRAMMAR = shard_pb2.STOP_REASON_ERROR, shard_pb2.STOP_REASON_GRAMMAR

Finish = Callable[[Sequence, "inference_pb2.FinishReason.ValueType"], None]
"""Ends a sequence."""


class BeamSteps:
    """Runs the requests of one shard group that are beam searches."""

    def __init__(self, residents: Residents, tokens: TokenCounts) -> None:
        self._residents = residents
        self._tokens = tokens

    def run(self, group: SequenceGroup, plan: PlanInFlight, num_available: int, prefills: list[Sequence]) -> int:
        """Adds the beams of a request that are to be scored to a plan, those that lack more than one token to prefills.

        Returns the blocks that they need, if these are more than num_available: nothing is run then.
        """
        beams = group.beams
        assert beams is not None
        if beams.to_fork:
            num_blocks = self._residents.num_blocks_to_fork_beams(group)
            if num_blocks > max(0, num_available):
                return num_blocks
            self._residents.fork_beams(group, plan)
        for beam in group.sequences:
            num_left = beam.num_admitted_tokens - beam.num_likely_computed_tokens
            if num_left > 0 and beam.state is SequenceState.RUNNING and num_left == 1:
                if plan.num_tokens_left:
                    plan.run(beam, 1, is_chunk=False)
            elif num_left > 0 and beam.state in (SequenceState.RUNNING, SequenceState.ADMITTED):
                prefills.append(beam)
        return 0

    def take_scores(self, plan: PlanInFlight, result: shard_pb2.StepResult, finish: Finish) -> list[Progress]:
        """Takes in what a plan has scored. Returns what the searches found that are over; their beams are finished."""
        progress: list[Progress] = []
        for scores in result.row_scores:
            beam = plan.sequences[scores.run_index]
            group, beams = beam.group, beam.group.beams
            if beams is None or beam.state is not SequenceState.RUNNING:
                continue  # It was preempted, or has ended.
            self._residents.on_scored(beam)
            if not beams.take(beam, scores, group.sequences):
                continue
            pruned = beams.advance(group.sequences)
            self._tokens.generated += len(beams.to_fork)
            if not beams.search.is_done:
                self._residents.prune(pruned)
                continue
            beams.to_fork = []
            hypotheses = beams.search.hypotheses[: beams.search.settings.n]
            reason = _STOP if any(hypothesis.is_stopped for hypothesis in hypotheses) else _LENGTH
            if hypotheses:
                progress.append(Progress(beam, [], None, reason, hypotheses=hypotheses))
            else:  # Nothing may follow any beam.
                progress.append(Progress.failed(beam, _NO_GRAMMAR if group.request.grammar else _ERROR))
            for sequence in group.unfinished():
                finish(sequence, reason)
        return progress
