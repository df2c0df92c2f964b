"""Checks what clients ask of beam search, and says how to search."""

from pagewire.parameter_table import BEAM_LENGTH_PENALTY, MAX_INT32, Range
from pagewire.v1 import inference_pb2
from pagewire_common.sampling_params import faults, with_defaults

from pagewire_router.admission.validation import Limits, Violations, check_stops
from pagewire_router.beams.search import BeamSettings

PREFIX = "beam_search_params."
_SHARED = (
    *("ignore_eos", "min_tokens", "n", "detokenize", "skip_special_tokens"),
    *("spaces_between_special_tokens", "include_stop_str_in_output", "truncate_prompt_tokens"),
)
"""Fields that mean the same in SamplingParams."""


def resolve_beam_search_params(
    given: inference_pb2.BeamSearchParams, limits: Limits, violations: Violations
) -> inference_pb2.SamplingParams:
    """What beam search has in common with sampling, resolved. It is void if violations were added."""
    if not limits.max_beam_width:
        violations.add(PREFIX[:-1], "is not served by the shards; use sampling_params")
        return with_defaults(inference_pb2.SamplingParams())
    # beam_width and max_tokens have no default: left out they are 0, which is refused.
    shared = inference_pb2.SamplingParams(temperature=0.0, seed=0, n=given.beam_width, max_tokens=given.max_tokens)
    for descriptor, value in given.ListFields():
        if descriptor.name == "structured_outputs":
            shared.structured_outputs.CopyFrom(value)
        elif descriptor.name in _SHARED:
            setattr(shared, descriptor.name, value)
    shared.stop_token_ids.extend(given.stop_token_ids)
    params = with_defaults(shared)
    accepted = Range(1, limits.max_beam_width)
    if not accepted.holds(given.beam_width):
        violations.add(f"{PREFIX}beam_width", f"is {given.beam_width}; accepted: {accepted}")
    ranges = {
        **limits.ranges,
        "n": Range(1, max(1, given.beam_width)) if given.HasField("n") else Range(-MAX_INT32, MAX_INT32),
        "min_tokens": Range(0, max(0, params.max_tokens)),
    }
    for name, description in faults(params, limits.vocab_size, ranges):
        violations.add(PREFIX + name, description)
    if not BEAM_LENGTH_PENALTY.holds(given.length_penalty):
        violations.add(f"{PREFIX}length_penalty", f"is {given.length_penalty:g}; accepted: {BEAM_LENGTH_PENALTY}")
    if given.early_stopping not in inference_pb2.EarlyStopping.values():
        violations.add(f"{PREFIX}early_stopping", f"is {given.early_stopping}, which is no value of EarlyStopping")
    check_stops(params, limits, violations, PREFIX)
    return params


def beam_settings(
    given: inference_pb2.BeamSearchParams,
    params: inference_pb2.SamplingParams,
    eos_token_ids: tuple[int, ...],
    limits: Limits,
) -> BeamSettings:
    """How to search.

    Args:
        given: As checked by resolve_beam_search_params.
        params: What that returned, bounded by the context.
        eos_token_ids: the model's own, unless they are ignored.
    """
    stop_token_ids = frozenset((*params.stop_token_ids, *eos_token_ids))
    return BeamSettings(
        width=given.beam_width,
        n=params.n,
        max_tokens=params.max_tokens,
        num_scores=min(given.beam_width + len(stop_token_ids), limits.vocab_size),
        stop_token_ids=stop_token_ids,
        length_penalty=given.length_penalty if given.HasField("length_penalty") else 1.0,
        early_stopping=given.early_stopping,
    )
