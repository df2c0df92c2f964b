"""Sampling parameters between router and shards: the public message with every default filled in, and its checks.

The router resolves what a client sent (with_defaults, faults) and passes it on; a shard checks it again (faults).
What each parameter may be is in pagewire.parameter_table.
"""

from collections.abc import Iterator, Mapping, Sequence

from pagewire.parameter_table import MAX_EXTRA_ARGS_BYTES, MAX_LOGIT_BIAS_ENTRIES, PARAMETERS, Kind, Range
from pagewire.v1.inference_pb2 import SamplingParams

from pagewire_common.json_struct import depth, plain

DEFAULTS = SamplingParams()
"""Every default of the table. Not to be changed."""
for _parameter in PARAMETERS:
    if _parameter.default is not None:
        setattr(DEFAULTS, _parameter.name, _parameter.default)
_NUMBERS = tuple(
    (parameter.name, parameter.accepted, parameter.default is None)
    for parameter in PARAMETERS
    if parameter.kind in (Kind.INT, Kind.FLOAT) and parameter.accepted is not None
)
"""Name and range of each number, and whether it may be absent from resolved parameters."""
_TOKEN_LISTS = tuple(parameter.name for parameter in PARAMETERS if parameter.kind is Kind.TOKEN_IDS)
_BIASES = next(parameter.accepted for parameter in PARAMETERS if parameter.kind is Kind.BIASES)

MAX_EXTRA_ARGS_DEPTH = 16

RESOLVED = frozenset((*(parameter.name for parameter in PARAMETERS if parameter.kind is Kind.FLOAT), "top_k", "seed"))
"""Fields that the parameters of an admitted sequence always set: what a shard reads of every sequence."""


def with_defaults(given: SamplingParams, defaults: SamplingParams = DEFAULTS) -> SamplingParams:
    """A copy in which every absent field is set to its default, as far as it has one. The seed has none.

    Args:
        defaults: every default, if some are not those of the table.
    """
    params = SamplingParams()
    params.CopyFrom(defaults)
    params.MergeFrom(given)
    return params


def faults(
    params: SamplingParams, vocab_size: int, ranges: Mapping[str, Range] | None = None
) -> Iterator[tuple[str, str]]:
    """Yields the faults of resolved parameters: a field's name, its value and what is accepted.

    Stops, texts and how parameters go together are not looked at.

    Args:
        ranges: narrower ranges, by the name of a number, than those that hold everywhere.
    """
    for name, general, is_optional in _NUMBERS:
        if is_optional and not params.HasField(name):  # type: ignore[arg-type]
            continue
        value = getattr(params, name)
        accepted = general if ranges is None else ranges.get(name, general)
        if not accepted.holds(value):
            yield name, f"is {value:g}; accepted: {accepted}"
    for name in _TOKEN_LISTS:
        if name != "stop_token_ids" and (description := token_fault(getattr(params, name), vocab_size)):
            yield name, description
    yield from _bias_faults(params, vocab_size)
    if params.HasField("extra_args"):
        yield from _extra_args_faults(params)


def token_fault(token_ids: Sequence[int], vocab_size: int) -> str | None:
    """What is wrong with a list of token ids: its length, or the first that is not in the vocabulary."""
    if len(token_ids) > vocab_size:
        return f"holds {len(token_ids)} ids; accepted: up to {vocab_size}, the vocabulary size"
    # A slice is a list, which is faster to look through than a field of a message.
    if not token_ids or max(token_ids[:]) < vocab_size:
        return None
    token_id = next(token_id for token_id in token_ids if token_id >= vocab_size)
    return f"holds token {token_id}; accepted: token ids below the vocabulary size, {vocab_size}"


def _extra_args_faults(params: SamplingParams) -> Iterator[tuple[str, str]]:
    num_bytes = params.extra_args.ByteSize()
    if num_bytes > MAX_EXTRA_ARGS_BYTES:
        yield "extra_args", f"takes {num_bytes:,} bytes; accepted: up to {MAX_EXTRA_ARGS_BYTES:,}"
    elif depth(params.extra_args) > MAX_EXTRA_ARGS_DEPTH:
        # Plans hold it, some messages deeper, and protobuf reads no more than a hundred.
        yield "extra_args", f"nests objects and arrays more than {MAX_EXTRA_ARGS_DEPTH} deep"
    else:
        try:
            plain(params.extra_args)
        except ValueError as error:
            yield "extra_args", str(error)


def _bias_faults(params: SamplingParams, vocab_size: int) -> Iterator[tuple[str, str]]:
    if len(params.logit_bias) > MAX_LOGIT_BIAS_ENTRIES:
        yield "logit_bias", f"holds {len(params.logit_bias)} entries; accepted: up to {MAX_LOGIT_BIAS_ENTRIES}"
        return
    assert _BIASES is not None
    for token_id, bias in sorted(params.logit_bias.items()):
        if token_id >= vocab_size:
            yield "logit_bias", f"holds token {token_id}; accepted: token ids below the vocabulary size, {vocab_size}"
            return
        if not _BIASES.holds(bias):
            yield "logit_bias", f"is {bias:g} for token {token_id}; accepted: {_BIASES}"
            return
