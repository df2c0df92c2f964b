"""Sampling parameters between router and shards: the public message with every default filled in, and the ranges.

The router resolves what a client sent (with_defaults, faults) and passes it on; a shard checks it again (faults).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pagewire.v1.inference_pb2 import SamplingParams

MAX_LOGIT_BIAS_ENTRIES = 1024
"""Tokens of one sequence that may have a bias."""
MAX_LOGIT_BIAS = 100.0
"""Largest absolute value of a bias."""

_DEFAULTS = SamplingParams(
    n=1,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    repetition_penalty=1.0,
    temperature=1.0,
    top_p=1.0,
    top_k=0,
    min_p=0.0,
    ignore_eos=False,
    max_tokens=16,
    min_tokens=0,
    detokenize=True,
    skip_special_tokens=True,
    spaces_between_special_tokens=True,
    include_stop_str_in_output=False,
)


@dataclass(frozen=True, slots=True)
class _Range:
    """The values that a number may have; never NaN or infinity."""

    low: float
    high: float = math.inf
    excludes_low: bool = False

    def holds(self, value: float) -> bool:
        """Whether the value is in the range."""
        is_above = value > self.low if self.excludes_low else value >= self.low
        return is_above and value <= self.high and math.isfinite(value)

    def __str__(self) -> str:
        if self.excludes_low:
            return f"above {self.low:g}" + ("" if self.high == math.inf else f", at most {self.high:g}")
        return f"{self.low:g} or more" if self.high == math.inf else f"{self.low:g} to {self.high:g}"


_RANGES = {
    "temperature": _Range(0.0, 2.0),
    "top_p": _Range(0.0, 1.0, excludes_low=True),
    "top_k": _Range(-1),
    "min_p": _Range(0.0, 1.0),
    "presence_penalty": _Range(-2.0, 2.0),
    "frequency_penalty": _Range(-2.0, 2.0),
    "repetition_penalty": _Range(0.0, excludes_low=True),
}
_LOGIT_BIAS_RANGE = _Range(-MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)

RESOLVED = frozenset((*_RANGES, "seed"))
"""Fields that the parameters of an admitted sequence always set."""
NOT_SERVED = frozenset(("prompt_logprobs", "allowed_token_ids", "bad_words", "structured_outputs"))
"""Fields that are refused by name."""


def with_defaults(given: SamplingParams) -> SamplingParams:
    """A copy in which every absent field that has a default is set to it. The seed has none."""
    params = SamplingParams()
    params.CopyFrom(_DEFAULTS)
    params.MergeFrom(given)
    return params


def faults(params: SamplingParams, vocab_size: int) -> Iterator[tuple[str, str]]:
    """Yields the faults of resolved parameters: a field's name, its value and what is accepted.

    Fields whose limits are the router's own (n, max_tokens, logprobs, stops) are not looked at.
    """
    for name, accepted in _RANGES.items():
        value = getattr(params, name)
        if not accepted.holds(value):
            yield name, f"is {value:g}; accepted: {accepted}"
    if len(params.logit_bias) > MAX_LOGIT_BIAS_ENTRIES:
        yield "logit_bias", f"holds {len(params.logit_bias)} entries; accepted: up to {MAX_LOGIT_BIAS_ENTRIES}"
        return
    for token_id, bias in sorted(params.logit_bias.items()):
        if token_id >= vocab_size:
            yield "logit_bias", f"holds token {token_id}; accepted: token ids below the vocabulary size, {vocab_size}"
            return
        if not _LOGIT_BIAS_RANGE.holds(bias):
            yield "logit_bias", f"is {bias:g} for token {token_id}; accepted: {_LOGIT_BIAS_RANGE}"
            return
