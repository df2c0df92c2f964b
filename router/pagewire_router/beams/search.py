"""Beam search over scores of tokens, as transformers' generate(num_beams=...) does it. Pure: no model, no scheduler.

A step takes, for each beam, the most probable tokens behind it, and ranks all of them by the summed log-probability of
the beam with the token. Those among the first `width` that end a beam become hypotheses, if they are among the best
`width` of these; the first `width` that do not end become the beams of the next step. A hypothesis' score is its sum
divided by its length to the power of length_penalty.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pagewire.v1 import inference_pb2

_NEVER, _TRUE = inference_pb2.EARLY_STOPPING_NEVER, inference_pb2.EARLY_STOPPING_TRUE


@dataclass(frozen=True, slots=True)
class BeamSettings:
    """How to search."""

    width: int
    """Beams that are kept at each step."""
    n: int
    """Hypotheses to return; at most width."""
    max_tokens: int
    """Most tokens of a hypothesis."""
    num_scores: int
    """Most probable tokens that are asked for behind each beam: width and the stop tokens, or the vocabulary's size."""
    stop_token_ids: frozenset[int] = frozenset()
    """Tokens that end a beam, those that end every sequence of the model among them."""
    length_penalty: float = 1.0
    early_stopping: "inference_pb2.EarlyStopping.ValueType" = inference_pb2.EARLY_STOPPING_FALSE


@dataclass(frozen=True, slots=True, eq=False)
class Beam:
    """An unfinished output. It holds its last token and the beam before it."""

    before: "Beam | None"
    token_id: int
    num_tokens: int
    cumulative_logprob: float

    def token_ids(self) -> list[int]:
        """All tokens of the output."""
        return list(self._backwards())[::-1]

    def _backwards(self) -> Iterator[int]:
        beam = self
        while beam.before is not None:
            yield beam.token_id
            beam = beam.before


@dataclass(frozen=True, slots=True, eq=False)
class Hypothesis:
    """A finished output."""

    beam: Beam
    score: float
    is_stopped: bool
    """Its last token is a stop token; else it has max_tokens."""


class Continuation(NamedTuple):
    """A beam of the next step."""

    parent: int
    """Index of the beam that it continues."""
    token_id: int


class BeamSearch:
    """One search. Beams and hypotheses are in order, best first."""

    def __init__(self, settings: BeamSettings) -> None:
        self.settings = settings
        self.beams = [Beam(None, -1, 0, 0.0)]
        self.hypotheses: list[Hypothesis] = []
        """At most `width`."""
        self.is_done = False

    @property
    def num_tokens(self) -> int:
        """Tokens of each beam; once the search is done, of those of the last step."""
        return self.beams[0].num_tokens if self.beams else self.settings.max_tokens

    def advance(self, scores: Sequence[tuple[Sequence[int], Sequence[float]]]) -> list[Continuation]:
        """Takes a step, after which the beams are those that are returned.

        Args:
            scores: for each beam the most probable tokens behind it, best first, and their log-probabilities.
        """
        settings, beams = self.settings, self.beams
        num_tokens = beams[0].num_tokens + 1
        divisor = num_tokens**settings.length_penalty
        is_last = num_tokens >= settings.max_tokens
        next_beams: list[Beam] = []
        continuations: list[Continuation] = []
        for rank, (negative_sum, parent, token_id) in enumerate(_ranked(beams, scores)):
            is_stopped = token_id in settings.stop_token_ids
            if is_stopped or is_last:
                if rank < settings.width:
                    beam = Beam(beams[parent], token_id, num_tokens, -negative_sum)
                    self.hypotheses.append(Hypothesis(beam, -negative_sum / divisor, is_stopped))
            elif len(next_beams) < settings.width:
                next_beams.append(Beam(beams[parent], token_id, num_tokens, -negative_sum))
                continuations.append(Continuation(parent, token_id))
            if rank >= settings.width - 1 and (is_last or len(next_beams) == settings.width):
                break
        self.hypotheses = sorted(self.hypotheses, key=lambda hypothesis: -hypothesis.score)[: settings.width]
        self.beams = next_beams
        self.is_done = not next_beams or (len(self.hypotheses) == settings.width and not self._may_improve())
        return continuations

    def _may_improve(self) -> bool:
        """Whether to go on although there are enough hypotheses: by early_stopping."""
        settings, best = self.settings, self.beams[0]
        # transformers decodes greedily where there is one beam.
        if settings.early_stopping == _TRUE or settings.width == 1:
            return False
        is_hopeful = settings.early_stopping == _NEVER and settings.length_penalty > 0
        num_tokens = settings.max_tokens if is_hopeful else best.num_tokens
        hoped_for: float = best.cumulative_logprob / num_tokens**settings.length_penalty
        return hoped_for > self.hypotheses[-1].score


def _ranked(
    beams: Sequence[Beam], scores: Sequence[tuple[Sequence[int], Sequence[float]]]
) -> list[tuple[float, int, int]]:
    """All continuations, best first, of equals the lower beam and the lower token first: the negative of the summed
    log-probability, the beam's index, the token."""
    return sorted(
        (-(beam.cumulative_logprob + logprob), parent, token_id)
        for parent, (beam, (token_ids, logprobs)) in enumerate(zip(beams, scores, strict=True))
        for token_id, logprob in zip(token_ids, logprobs, strict=True)
    )
