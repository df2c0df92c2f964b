"""Checks requests. A refusal lists every violation, each with its field, what was given and what is accepted."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.protocol import GREEDY_BELOW, MAX_STOP_TOKENS
from pagewire_common.sampling_params import NOT_SERVED, faults, with_defaults

from pagewire_router.errors import FieldViolation, InvalidRequest, RequestTooLong

MAX_REQUEST_ID_CHARS = 256
MAX_CACHE_SALT_CHARS = 256
MAX_STOP_STRINGS = 64
MAX_STOP_STRING_CHARS = 1024
MAX_STOP_TOKEN_ENTRIES = 1024
"""Most stop tokens that a request may list, repetitions included; longer lists are not read."""
MESSAGE_ROOM_BYTES = 1 << 20
MESSAGE_BYTES_PER_TOKEN = 16
"""A message may have this many bytes for each token of the context, and MESSAGE_ROOM_BYTES more. A token takes at most
five bytes as an id and about four as text; the rest is for chat messages, tools and what a template leaves out."""
_INT64 = 1 << 63


@dataclass(frozen=True, slots=True)
class Limits:
    """What the served model and the router's configuration allow."""

    vocab_size: int
    """Number of token ids; every id is below it."""
    max_model_len: int
    """Longest prompt plus output, in tokens."""
    max_n: int
    """Most sequences of one request."""
    max_logprobs: int
    """Most log-probabilities for each token."""
    eos_token_ids: tuple[int, ...]
    """The model's own end-of-sequence tokens, as far as its vocabulary has them."""

    @property
    def max_message_bytes(self) -> int:
        """Largest message that a request to this model can need."""
        return MESSAGE_ROOM_BYTES + MESSAGE_BYTES_PER_TOKEN * self.max_model_len

    @staticmethod
    def of(model: shard_pb2.ShardInfo, *, max_n: int, max_logprobs: int) -> "Limits":
        """The limits of a served model, with the router's own bounds."""
        return Limits(
            vocab_size=model.vocab_size,
            max_model_len=model.max_model_len,
            max_n=min(max_n, model.max_num_seqs),
            max_logprobs=min(max_logprobs, model.max_logprobs),
            eos_token_ids=tuple(token_id for token_id in model.eos_token_ids if token_id < model.vocab_size),
        )


@dataclass(slots=True)
class Violations:
    """Collects what is wrong with a request."""

    found: list[FieldViolation] = field(default_factory=list)

    def add(self, name: str, description: str) -> None:
        """Adds a violation of the field with this name."""
        self.found.append(FieldViolation(name, description))

    def raise_if_any(self) -> None:
        """Raises InvalidRequest if there are violations."""
        if self.found:
            raise InvalidRequest(self.found)


def resolve_sampling_params(
    given: inference_pb2.SamplingParams, limits: Limits, violations: Violations, prefix: str = "sampling_params."
) -> inference_pb2.SamplingParams:
    """A copy with defaults filled in, and a seed where none is given. It is void if violations were added."""
    params = with_defaults(given)
    if not given.HasField("seed"):
        params.seed = secrets.randbelow(_INT64)
    for name, description in faults(params, limits.vocab_size):
        violations.add(prefix + name, description)
    _check_limits(params, limits, violations, prefix)
    _check_stops(params, limits, violations, prefix)
    for name in sorted(NOT_SERVED & {descriptor.name for descriptor, _ in given.ListFields()}):
        violations.add(f"{prefix}{name}", "is not served yet; leave it out")
    params.top_k = max(0, params.top_k)
    return params


def _check_limits(params: inference_pb2.SamplingParams, limits: Limits, violations: Violations, prefix: str) -> None:
    """Checks the counts that are bounded by the limits of model or router."""
    n, max_tokens = params.n, params.max_tokens
    bounds: list[tuple[str, int, int | None]] = [
        ("n", 1, limits.max_n),
        ("max_tokens", 1, None),
        ("min_tokens", 0, max_tokens),
    ]
    if params.HasField("logprobs"):
        bounds.append(("logprobs", 0, limits.max_logprobs))
    for name, low, high in bounds:
        value = getattr(params, name)
        if value < low or (high is not None and value > high):
            accepted = f"{low} or more" if high is None else f"{low} to {high}"
            violations.add(prefix + name, f"is {value}; accepted: {accepted}")
    if n > 1 and params.temperature < GREEDY_BELOW:
        violations.add(f"{prefix}n", f"is {n}; accepted: 1 when temperature is 0, for all sequences would be equal")


def _check_stops(params: inference_pb2.SamplingParams, limits: Limits, violations: Violations, prefix: str) -> None:
    """Checks stop strings and stop tokens. Only the first entries of a list that is too long are read."""
    if params.stop and not params.detokenize:
        violations.add(f"{prefix}stop", "is given while detokenize is false; stop strings need text")
    if len(params.stop) > MAX_STOP_STRINGS:
        violations.add(f"{prefix}stop", f"holds {len(params.stop)} strings; accepted: up to {MAX_STOP_STRINGS}")
    for index, stop in enumerate(params.stop[:MAX_STOP_STRINGS]):
        if not 1 <= len(stop) <= MAX_STOP_STRING_CHARS:
            violations.add(
                f"{prefix}stop[{index}]", f"has {len(stop)} characters; accepted: 1 to {MAX_STOP_STRING_CHARS}"
            )
    eos_token_ids = () if params.ignore_eos else limits.eos_token_ids
    max_stop_tokens = MAX_STOP_TOKENS - len(eos_token_ids)
    num_given, token_ids = len(params.stop_token_ids), params.stop_token_ids[:MAX_STOP_TOKEN_ENTRIES]
    if num_given > MAX_STOP_TOKEN_ENTRIES or len(set(token_ids) - set(eos_token_ids)) > max_stop_tokens:
        violations.add(f"{prefix}stop_token_ids", f"holds {num_given} ids; accepted: up to {max_stop_tokens}")
    check_token_ids(token_ids, f"{prefix}stop_token_ids", limits, violations)


def check_token_ids(token_ids: Sequence[int], name: str, limits: Limits, violations: Violations) -> None:
    """Adds a violation for the first token id that is not in the vocabulary."""
    if token_ids and max(token_ids) >= limits.vocab_size:
        index = next(i for i, token_id in enumerate(token_ids) if token_id >= limits.vocab_size)
        violations.add(
            f"{name}[{index}]",
            f"is {token_ids[index]}; accepted: token ids below the vocabulary size, {limits.vocab_size}",
        )


def check_request(request: inference_pb2.GenerateRequest, violations: Violations) -> None:
    """Checks the fields other than prompt and sampling parameters."""
    if request.WhichOneof("decoding") == "beam_search_params":
        violations.add("beam_search_params", "is not served yet; use sampling_params")
    if request.HasField("resume"):
        violations.add("resume", "is not served yet; leave it out")
    if request.HasField("adapter"):
        violations.add("adapter", "is not served yet; leave it out")
    num_chars = len(request.cache_salt)
    if num_chars > MAX_CACHE_SALT_CHARS:
        violations.add("cache_salt", f"has {num_chars} characters; accepted: up to {MAX_CACHE_SALT_CHARS}")


def check_request_id(request_id: str) -> None:
    """Raises InvalidRequest if the id is too long."""
    if len(request_id) > MAX_REQUEST_ID_CHARS:
        description = f"has {len(request_id)} characters; accepted: up to {MAX_REQUEST_ID_CHARS}"
        raise InvalidRequest([FieldViolation("request_id", description)])


def check_num_token_ids(num_tokens: int, name: str, limits: Limits) -> None:
    """Raises RequestTooLong if there are more token ids than the context holds."""
    if num_tokens > limits.max_model_len:
        description = f"holds {num_tokens} ids; accepted: up to {limits.max_model_len}, the context's length"
        raise RequestTooLong([FieldViolation(name, description)])


def check_prompt_length(num_tokens: int, name: str, limits: Limits) -> None:
    """Raises InvalidRequest for an empty prompt, RequestTooLong for one that leaves no room for a token."""
    if num_tokens == 0:
        raise InvalidRequest([FieldViolation(name, "is empty; a prompt has at least one token")])
    if num_tokens >= limits.max_model_len:
        raise RequestTooLong(
            [
                FieldViolation(
                    name,
                    f"is {num_tokens} tokens long; accepted: up to {limits.max_model_len - 1}, "
                    f"since prompt and output share a context of {limits.max_model_len}",
                )
            ]
        )


def bound_by_context(params: inference_pb2.SamplingParams, num_prompt_tokens: int, limits: Limits) -> None:
    """Lowers max_tokens and min_tokens of resolved parameters to what the context has room for."""
    params.max_tokens = min(params.max_tokens, limits.max_model_len - num_prompt_tokens)
    params.min_tokens = min(params.min_tokens, params.max_tokens)
