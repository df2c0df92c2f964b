"""Sampling parameters, with vLLM's names, defaults and ranges."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from typing import TYPE_CHECKING, Any

from pagewire.errors import InvalidRequest
from pagewire.text import is_encodable

if TYPE_CHECKING:
    from pagewire.v1 import inference_pb2

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy."""
UNLIMITED_TOKENS = 2**31 - 1
"""Value that max_tokens=None sends: the server ends the sequence at its context length."""


@dataclass(slots=True, kw_only=True)
class SamplingParams:
    """How to decode the continuation of a prompt.

    Values are checked when the object is built and again when a request is made of it, for attributes may be assigned
    in between. Limits that only the server knows (largest n, largest logprobs, vocabulary) are checked there. The lists
    are the object's own copies; `stop`, `stop_token_ids` and `bad_words` are lists whatever was given.

    Raises:
        InvalidRequest: names the field, what was given and what is accepted.
    """

    n: int = 1
    """Sequences to sample from the prompt; must be 1 with greedy sampling."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of each token that has been generated. -2 to 2."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once for each time it has been generated. -2 to 2."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt or output. Above 0."""
    temperature: float = 1.0
    """Divides the logits; 0 (below 1e-5) means greedy sampling. 0 to 2."""
    top_p: float = 1.0
    """Keeps the smallest set of tokens whose probability reaches this. Above 0, at most 1."""
    top_k: int = 0
    """Keeps the k most probable tokens; 0 and -1 keep all."""
    min_p: float = 0.0
    """Keeps tokens at least this times as probable as the most probable. 0 to 1."""
    seed: int | None = None
    """Makes the sample reproducible. None (and -1, as in vLLM): the server picks one."""
    stop: str | Sequence[str] | None = None
    """Strings that end a sequence when generated. An empty string is refused."""
    stop_token_ids: Sequence[int] | None = None
    """Token ids that end a sequence when generated."""
    ignore_eos: bool = False
    """Goes on after the model's end-of-sequence token."""
    max_tokens: int | None = 16
    """Most tokens to generate for each sequence; None: until the context ends."""
    min_tokens: int = 0
    """Tokens to generate before the end-of-sequence token or a stop token may come. At most max_tokens."""
    logprobs: int | None = None
    """Log-probabilities to return for each token: its own and this many of the most probable."""
    prompt_logprobs: int | None = None
    """Log-probabilities to return for each prompt token. Not served: refused by name."""
    detokenize: bool = True
    """Returns text beside token ids; stop strings need it."""
    skip_special_tokens: bool = True
    """Leaves special tokens out of the text."""
    spaces_between_special_tokens: bool = True
    """Puts spaces between special tokens in the text."""
    include_stop_str_in_output: bool = False
    """Keeps the stop string that ended a sequence at the end of its text."""
    logit_bias: Mapping[int, float] | None = None
    """Added to the model's logits, by token id, before penalties and temperature. -100 to 100, where either end bans or
    forces a token in practice; at most 1024 entries. Log-probabilities are those without it."""
    allowed_token_ids: Sequence[int] | None = None
    """Only these tokens may be generated."""
    bad_words: Sequence[str] | None = None
    """Strings that must not be generated."""

    def __post_init__(self) -> None:
        for name in _CONTAINERS:
            setattr(self, name, _plain(getattr(self, name)))
        self._check()

    @classmethod
    def from_optional(cls, **given: Any) -> "SamplingParams":
        """Builds parameters from values that may be None, which means the default.

        max_tokens=None still means "until the context ends". Keys of logit_bias may be strings, as in JSON, and its
        values are limited to -100 to 100.
        """
        named = {name: value for name, value in given.items() if value is not None or name == "max_tokens"}
        if "logit_bias" in named:
            named["logit_bias"] = _limited_bias(named["logit_bias"])
        return cls(**named)

    def _check(self) -> None:
        """Turns values of numpy and torch into Python's own, and strings and None into lists; checks all ranges."""
        for name in _SERVED:
            value = getattr(self, name)
            if type(value) not in _PLAIN_TYPES and not _is_plain_list(value):
                setattr(self, name, _plain(value))
        for name in ("stop", "stop_token_ids", "bad_words"):
            if type(value := getattr(self, name)) is not list:
                setattr(self, name, _as_list(value))
        self._check_numbers()
        self._check_lists()
        self._check_combinations()

    def _check_numbers(self) -> None:
        for name in ("presence_penalty", "frequency_penalty"):
            _check_float(name, getattr(self, name), -2.0, 2.0)
        _check_float("temperature", self.temperature, 0.0, 2.0)
        _check_float("repetition_penalty", self.repetition_penalty, 0.0, math.inf, above=True)
        _check_float("top_p", self.top_p, 0.0, 1.0, above=True)
        _check_float("min_p", self.min_p, 0.0, 1.0)
        _check_int("n", self.n, 1)
        _check_int("top_k", self.top_k, -1)
        _check_int("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, 1)
        if self.seed is not None:
            _check_int("seed", self.seed, -(2**63), 2**63 - 1)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), 0)

    def _check_lists(self) -> None:
        for name in ("stop", "bad_words"):
            for item in _as_list(getattr(self, name)):
                if not isinstance(item, str) or not item:
                    raise _out_of_range(name, item, "non-empty strings")
                if not is_encodable(item):
                    raise _out_of_range(name, item, "text that UTF-8 can encode, without lone surrogates")
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            for token_id in _as_list(getattr(self, name)):
                _check_int(name, token_id, 0, 2**32 - 1)
        if self.logit_bias is not None:
            if not isinstance(self.logit_bias, Mapping):
                raise _out_of_range("logit_bias", self.logit_bias, "numbers by token id")
            for bias in self.logit_bias.values():
                _check_float("logit_bias", bias, -100.0, 100.0)

    def _check_combinations(self) -> None:
        if self.n > 1 and self.temperature < GREEDY_BELOW:
            raise _out_of_range("n", self.n, "1 when temperature is 0, where all sequences would be the same")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _out_of_range("min_tokens", self.min_tokens, f"at most max_tokens, which is {self.max_tokens}")
        if self.stop and not self.detokenize:
            raise _out_of_range("stop", self.stop, "no stop strings when detokenize is False")

    def clone(self) -> "SamplingParams":
        """A copy that shares nothing with the original."""
        return copy.deepcopy(self)

    def to_proto(self) -> "inference_pb2.SamplingParams":
        """The wire form: fields at their defaults are left out, the server has the same ones.

        Raises:
            InvalidRequest: an attribute was assigned a value that is not accepted.
        """
        from pagewire.v1 import inference_pb2

        self._check()
        message = inference_pb2.SamplingParams()
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "max_tokens":
                value = UNLIMITED_TOKENS if value is None else value
            if value is None or value == field.default or (field.name == "seed" and value == -1):
                continue
            if field.name == "logit_bias":
                message.logit_bias.update(value)
            elif field.name in ("stop", "stop_token_ids", "allowed_token_ids", "bad_words"):
                getattr(message, field.name).extend(_as_list(value))
            else:
                setattr(message, field.name, value)
        return message


_NOT_SERVED: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "extra_args": ({},),
    "flat_logprobs": (False,),
    "guided_decoding": (),
    "logits_processors": ([],),
    "logprob_token_ids": (),
    "output_kind": (),
    "repetition_detection": (),
    "routed_experts_prompt_start": (0,),
    "skip_clone": (True, False),
    "skip_reading_prefix_cache": (False,),
    "structured_outputs": (),
    "thinking_token_budget": (),
    "truncate_prompt_tokens": (),
}
"""vLLM's further parameters. Each is accepted if it is None or has one of the values given, which change nothing."""


def _refusing_by_name(build: Callable[..., None]) -> Callable[..., None]:
    """Makes a constructor accept parameters of _NOT_SERVED that change nothing, and refuse others by name."""

    @wraps(build)
    def init(self: object, *args: Any, **given: Any) -> None:
        if not given.keys() <= _SERVED:
            for name in given.keys() & _NOT_SERVED.keys():
                value = given.pop(name)
                if value is not None and value not in _NOT_SERVED[name]:
                    raise InvalidRequest.of_field(f"sampling_params.{name}", f"{value!r} given, which is not served")
        build(self, *args, **given)

    return init


_SERVED = {field.name for field in fields(SamplingParams)}
_CONTAINERS = ("stop", "stop_token_ids", "bad_words", "allowed_token_ids", "logit_bias")
_PLAIN_TYPES = {bool, int, float, str, type(None)}
SamplingParams.__init__ = _refusing_by_name(SamplingParams.__init__)  # type: ignore[method-assign]


def _is_plain_list(value: Any) -> bool:
    """Whether _plain would return an equal list."""
    return type(value) is list and all(type(item) in _PLAIN_TYPES for item in value)


def _plain(value: Any) -> Any:
    """Converts numbers and arrays of numpy and torch to Python's and copies containers; other values pass unchanged."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _limited_bias(bias: Any) -> dict[int, float]:
    """Returns the biases within -100 to 100. Raises InvalidRequest for anything but a mapping of ids to numbers."""
    try:
        return {int(token_id): min(100.0, max(-100.0, value)) for token_id, value in bias.items()}
    except (AttributeError, TypeError, ValueError):
        raise _out_of_range("logit_bias", bias, "numbers by token id") from None


def _as_list(value: str | Sequence[object] | Mapping[int, float] | None) -> list[object]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def _check_float(name: str, value: object, low: float, high: float, *, above: bool = False) -> None:
    """Raises InvalidRequest if the value is out of range. above: low itself is out of range too."""
    accepted = f"a finite number {'above' if above else 'from'} {low:g}" + (
        "" if high == math.inf else f"{', at most' if above else ' to'} {high:g}"
    )
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _out_of_range(name, value, accepted)
    if value < low or value > high or (above and value == low):
        raise _out_of_range(name, value, accepted)


def _check_int(name: str, value: object, low: int, high: int = 2**31 - 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _out_of_range(name, value, f"a whole number from {low}" + (f" to {high}" if high != 2**31 - 1 else ""))


def _out_of_range(name: str, value: object, accepted: str) -> InvalidRequest:
    return InvalidRequest.of_field(f"sampling_params.{name}", f"{value!r} given, accepted: {accepted}")
