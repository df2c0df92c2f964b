"""Beam search by transformers, and of requests here."""

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from pagewire.v1 import inference_pb2
from pagewire_router.beams.search import BeamSettings, Hypothesis

EARLY_STOPPING = {
    False: inference_pb2.EARLY_STOPPING_FALSE,
    True: inference_pb2.EARLY_STOPPING_TRUE,
    "never": inference_pb2.EARLY_STOPPING_NEVER,
}


@dataclass(frozen=True)
class Search:
    """What to search for, in transformers' words."""

    num_beams: int
    max_new_tokens: int = 12
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    min_new_tokens: int = 0
    eos_token_ids: tuple[int, ...] = ()

    def settings(self, vocab_size: int) -> BeamSettings:
        """The same for the router."""
        return BeamSettings(
            width=self.num_beams,
            n=self.num_return_sequences,
            max_tokens=self.max_new_tokens,
            num_scores=min(self.num_beams + len(self.eos_token_ids), vocab_size),
            stop_token_ids=frozenset(self.eos_token_ids),
            length_penalty=self.length_penalty,
            early_stopping=EARLY_STOPPING[self.early_stopping],
        )

    def options(self, vocab_size: int) -> dict[str, Any]:
        """Options of scheduling_world.make_request."""
        return {
            "beams": self.settings(vocab_size),
            "max_tokens": self.max_new_tokens,
            "min_tokens": self.min_new_tokens,
            "temperature": 0.0,
            "n": self.num_return_sequences,
        }


@dataclass(frozen=True)
class Found:
    """A finished output."""

    tokens: list[int]
    score: float


def search(model: transformers.PreTrainedModel, prompt: list[int], search: Search, **more: Any) -> list[Found]:
    """The outputs of transformers' generate, best first. more: further arguments of generate."""
    vocab_size = model.config.vocab_size
    out = model.generate(
        torch.tensor([prompt], device=model.device),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=model.device),
        num_beams=search.num_beams,
        max_new_tokens=search.max_new_tokens,
        num_return_sequences=search.num_return_sequences,
        length_penalty=search.length_penalty,
        early_stopping=search.early_stopping if search.num_beams > 1 else False,
        min_new_tokens=search.min_new_tokens or None,
        eos_token_id=list(search.eos_token_ids) or None,
        pad_token_id=vocab_size,
        do_sample=False,
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
        **more,
    )
    sequences = [[token for token in row if token != vocab_size] for row in out.sequences[:, len(prompt) :].tolist()]
    if search.num_beams > 1:
        return [Found(tokens, score) for tokens, score in zip(sequences, out.sequences_scores.tolist(), strict=True)]
    (tokens,) = sequences
    logprobs = torch.cat(out.logits).log_softmax(-1)[range(len(tokens)), tokens]
    return [Found(tokens, float(logprobs.sum()) / len(tokens) ** search.length_penalty)]


def found(hypotheses: list[Hypothesis]) -> list[Found]:
    """The router's hypotheses in the same form."""
    return [Found(hypothesis.beam.token_ids(), hypothesis.score) for hypothesis in hypotheses]


def check_equal(hypotheses: list[Hypothesis], expected: list[Found], what: object, tolerance: float = 1e-4) -> None:
    """Equal token for token, and scores within the tolerance."""
    actual = found(hypotheses)
    assert [f.tokens for f in actual] == [f.tokens for f in expected], what
    for one, other in zip(actual, expected, strict=True):
        assert abs(one.score - other.score) < tolerance, what
