"""Checks requests. A refusal lists every violation, each with its field, what was given and what is accepted."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from pagewire.parameter_table import GREEDY_BELOW, MAX_BAD_WORDS, MAX_STOP_STRINGS, MAX_TEXT_CHARS, Range
from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.protocol import MAX_BEAM_WIDTH, MAX_SCORES, MAX_STEP_LOGPROBS, MAX_STOP_TOKENS
from pagewire_common.sampling_params import DEFAULTS, faults, with_defaults

from pagewire_router.errors import FieldViolation, InvalidRequest, RequestTooLong

MAX_REQUEST_ID_CHARS = 256
MAX_CACHE_SALT_CHARS = 256
MAX_STOP_TOKEN_ENTRIES = 1024
"""Most stop tokens that a request may list, repetitions included; longer lists are not read."""
MAX_BAD_WORD_TOKEN_CHARS = 8
"""Bad words may have so many characters, on average, for each token that shards take; more are not tokenized."""
MAX_PROMPT_LOGPROBS = 1 << 22
"""Log-probabilities of one prompt, all positions together: some 30 MiB, until the client has taken them."""
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
    max_bad_word_tokens: int = 0
    """Most tokens of all bad words together; 0: the shards serve none."""
    serves_grammars: bool = False
    """Whether the shards serve structured_outputs."""
    has_processors: bool = False
    """Whether the shards run logits processors, which extra_args are for."""
    max_beam_width: int = 0
    """Most beams of a search; 0: the shards serve none."""
    defaults: inference_pb2.SamplingParams = field(default_factory=lambda: DEFAULTS, repr=False)
    """What absent parameters mean: every default is set."""
    ranges: dict[str, Range] = field(init=False)
    """Ranges of parameters that depend on the model or the router, by name."""

    def __post_init__(self) -> None:
        logprobs = Range(-1 if self.max_logprobs >= self.vocab_size else 0, self.max_logprobs)
        ranges = {
            "n": Range(1, self.max_n),
            "logprobs": logprobs,
            "prompt_logprobs": logprobs,
            "truncate_prompt_tokens": Range(-1, self.max_model_len, excludes_zero=True),
        }
        object.__setattr__(self, "ranges", ranges)

    @property
    def max_message_bytes(self) -> int:
        """Largest message that a request to this model can need."""
        return MESSAGE_ROOM_BYTES + MESSAGE_BYTES_PER_TOKEN * self.max_model_len

    @property
    def context(self) -> str:
        """Says how long the context is, in the words by which programs know that a prompt is too long for OpenAI's."""
        return f"this model's maximum context length is {self.max_model_len} tokens"

    @staticmethod
    def of(
        model: shard_pb2.ShardInfo,
        *,
        max_n: int,
        max_logprobs: int,
        model_defaults: inference_pb2.SamplingParams | None = None,
    ) -> "Limits":
        """The limits of a served model, with the router's own bounds.

        Args:
            max_logprobs: -1: as many as the vocabulary has.
            model_defaults: defaults of parameters that the model states; None: none.
        """
        scores = model.max_scores >= min(MAX_SCORES, model.vocab_size)
        return Limits(
            vocab_size=model.vocab_size,
            max_model_len=model.max_model_len,
            max_n=max_n,
            max_logprobs=min(model.vocab_size if max_logprobs == -1 else max_logprobs, model.max_logprobs),
            eos_token_ids=tuple(token_id for token_id in model.eos_token_ids if token_id < model.vocab_size),
            max_bad_word_tokens=model.max_bad_word_tokens,
            serves_grammars=model.serves_grammars,
            has_processors=bool(model.logits_processors),
            max_beam_width=min(MAX_BEAM_WIDTH, model.max_num_seqs) if scores else 0,
            defaults=DEFAULTS if model_defaults is None else with_defaults(model_defaults),
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
    params = with_defaults(given, limits.defaults)
    if not given.HasField("seed"):
        params.seed = secrets.randbelow(_INT64)
    ranges = limits.ranges
    if params.min_tokens:
        ranges = {**ranges, "min_tokens": Range(0, max(0, params.max_tokens))}
    for name, description in faults(params, limits.vocab_size, ranges):
        violations.add(prefix + name, description)
    if params.n > 1 and params.temperature < GREEDY_BELOW:
        violations.add(
            f"{prefix}n", f"is {params.n}; accepted: 1 when temperature is 0, for all sequences would be equal"
        )
    check_stops(params, limits, violations, prefix)
    if params.HasField("extra_args") and not limits.has_processors:
        violations.add(f"{prefix}extra_args", "is given, but the server has no logits processors; leave it out")
    if params.bad_words:
        _check_bad_words(params, limits, violations, prefix)
    params.top_k = max(0, params.top_k)
    for name in ("logprobs", "prompt_logprobs"):
        if getattr(params, name) == -1:
            setattr(params, name, limits.vocab_size)
    if params.n * params.logprobs > MAX_STEP_LOGPROBS:
        most = MAX_STEP_LOGPROBS // params.n
        violations.add(f"{prefix}logprobs", f"is {params.logprobs}; accepted for n of {params.n}: up to {most}")
    return params


def _check_texts(texts: Sequence[str], max_texts: int, name: str, violations: Violations) -> None:
    """Checks the number and lengths of strings. Only the first entries of a list that is too long are read."""
    if len(texts) > max_texts:
        violations.add(name, f"holds {len(texts)} strings; accepted: up to {max_texts}")
    for index, text in enumerate(texts[:max_texts]):
        if not 1 <= len(text) <= MAX_TEXT_CHARS:
            violations.add(f"{name}[{index}]", f"has {len(text)} characters; accepted: 1 to {MAX_TEXT_CHARS}")


def _check_bad_words(params: inference_pb2.SamplingParams, limits: Limits, violations: Violations, prefix: str) -> None:
    """Bounds the work of tokenizing bad words; see bad_words.py for what they come to."""
    if not limits.max_bad_word_tokens:
        violations.add(f"{prefix}bad_words", "is not served by the shards; leave it out")
        return
    _check_texts(params.bad_words, MAX_BAD_WORDS, f"{prefix}bad_words", violations)
    num_chars = sum(map(len, params.bad_words[:MAX_BAD_WORDS]))
    max_chars = MAX_BAD_WORD_TOKEN_CHARS * limits.max_bad_word_tokens
    if num_chars > max_chars:
        violations.add(f"{prefix}bad_words", f"have {num_chars} characters in all; accepted: up to {max_chars}")


def check_stops(params: inference_pb2.SamplingParams, limits: Limits, violations: Violations, prefix: str) -> None:
    """Checks stop strings and stop tokens. Only the first entries of a list that is too long are read."""
    if params.stop and not params.detokenize:
        violations.add(f"{prefix}stop", "is given while detokenize is false; stop strings need text")
    _check_texts(params.stop, MAX_STOP_STRINGS, f"{prefix}stop", violations)
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
        description = f"holds {num_tokens} ids; accepted: up to {limits.max_model_len}, since {limits.context}"
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
                    f"since {limits.context}, which prompt and output share",
                )
            ]
        )


def num_kept_tokens(params: inference_pb2.SamplingParams, limits: Limits) -> int | None:
    """How many tokens truncate_prompt_tokens keeps of a prompt at most; None: all."""
    if not params.HasField("truncate_prompt_tokens"):
        return None
    if params.truncate_prompt_tokens > 0:
        return params.truncate_prompt_tokens
    # Room for max_tokens, or for one token if max_tokens says no more than "until the context ends".
    room = limits.max_model_len - params.max_tokens
    return room if room > 0 else limits.max_model_len - 1


def check_prompt_logprobs(params: inference_pb2.SamplingParams, num_prompt_tokens: int) -> None:
    """Raises InvalidRequest if the log-probabilities of the prompt are more than one request may take memory for."""
    if num_prompt_tokens * (1 + params.prompt_logprobs) > MAX_PROMPT_LOGPROBS and params.HasField("prompt_logprobs"):
        most = MAX_PROMPT_LOGPROBS // num_prompt_tokens - 1
        description = f"is {params.prompt_logprobs}; accepted for {num_prompt_tokens} prompt tokens: up to {most}"
        raise InvalidRequest([FieldViolation("sampling_params.prompt_logprobs", description)])


def bound_by_context(params: inference_pb2.SamplingParams, num_prompt_tokens: int, limits: Limits) -> None:
    """Lowers max_tokens and min_tokens of resolved parameters to what the context has room for."""
    params.max_tokens = min(params.max_tokens, limits.max_model_len - num_prompt_tokens)
    params.min_tokens = min(params.min_tokens, params.max_tokens)
