"""Sampling parameters, with vLLM's names, defaults and ranges."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from typing import TYPE_CHECKING, Any, Self

from pagewire.assembly import RequestOutputKind
from pagewire.errors import InvalidRequest
from pagewire.parameter_table import BY_NAME, GREEDY_BELOW, MAX_INT32, Kind, Parameter
from pagewire.structured_outputs import StructuredOutputsParams
from pagewire.text import is_encodable

if TYPE_CHECKING:
    from pagewire.v1 import inference_pb2


MAX_WHOLE_DOUBLE = 2**53
"""Whole numbers up to this are doubles."""


class _Tracked:
    """Remembers which attributes were given a value after the object was built."""

    __slots__ = ("_given", "output_kind")
    _given: frozenset[str]
    output_kind: RequestOutputKind
    """What AsyncLLM and LLMEngine return of the request while it runs; LLM and the clients do not look at it."""

    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)
        if name != "_given":
            object.__setattr__(self, "_given", self._given | {name})

    def __new__(cls, *_args: Any, **_given: Any) -> Self:
        self = object.__new__(cls)
        object.__setattr__(self, "_given", frozenset())
        object.__setattr__(self, "output_kind", RequestOutputKind.CUMULATIVE)
        return self


@dataclass(slots=True, kw_only=True)
class SamplingParams(_Tracked):
    """How to decode the continuation of a prompt.

    What is neither given here nor assigned later is left to the server: it has the model's own default, if the model's
    generation_config.json states one (`LLM.get_default_sampling_params()` tells), else the default below. A value that
    is given counts, also if it is the default.

    Values are checked when the object is built and again when a request is made of it, for attributes may be assigned
    in between. Limits that only the server knows (largest n, largest logprobs, vocabulary) are checked there. The lists
    are the object's own copies; `stop`, `stop_token_ids` and `bad_words` are lists whatever was given.

    To change a copy, assign to what clone() returns. dataclasses.replace() makes an object that counts every value as
    given, also those that the server would have chosen.

    Raises:
        InvalidRequest: names the field, what was given and what is accepted.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None
    structured_outputs: StructuredOutputsParams | None = None
    truncate_prompt_tokens: int | None = None
    extra_args: Mapping[str, Any] | None = None

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
                object.__setattr__(self, name, _plain(value))
        for name in ("stop", "stop_token_ids", "bad_words"):
            if type(value := getattr(self, name)) is not list:
                object.__setattr__(self, name, _as_list(value))
        self._check_numbers()
        self._check_lists()
        self._check_combinations()

    def _check_numbers(self) -> None:
        for parameter in _NUMBERS:
            value = getattr(self, parameter.name)
            if value is not None or (parameter.default is not None and parameter.name != "max_tokens"):
                _check_number(parameter, value)

    def _check_lists(self) -> None:
        for name in _TEXTS:
            for item in _as_list(getattr(self, name)):
                if not isinstance(item, str) or not item:
                    raise _out_of_range(name, item, "non-empty strings")
                if not is_encodable(item):
                    raise _out_of_range(name, item, "text that UTF-8 can encode, without lone surrogates")
        for name in (*_TOKEN_IDS, "logit_bias"):
            for token_id in _as_list(getattr(self, name)):
                if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < 2**32:
                    raise _out_of_range(name, token_id, "token ids")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise _out_of_range("allowed_token_ids", self.allowed_token_ids, "at least one token id, or None for all")
        if self.extra_args is not None and not (isinstance(self.extra_args, Mapping) and _is_json(self.extra_args)):
            raise _out_of_range("extra_args", self.extra_args, "a dictionary of what JSON can express")
        if self.logit_bias is not None:
            if not isinstance(self.logit_bias, Mapping):
                raise _out_of_range("logit_bias", self.logit_bias, "numbers by token id")
            for bias in self.logit_bias.values():
                _check_number(BY_NAME["logit_bias"], bias)

    def _check_combinations(self) -> None:
        if self.structured_outputs is not None and not isinstance(self.structured_outputs, StructuredOutputsParams):
            raise _out_of_range("structured_outputs", self.structured_outputs, "StructuredOutputsParams")
        if self.n > 1 and self.temperature < GREEDY_BELOW:
            raise _out_of_range("n", self.n, "1 when temperature is 0, where all sequences would be the same")
        # What max_tokens is otherwise only the server knows: conversations have no limit of their own.
        if "max_tokens" in self._given and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _out_of_range("min_tokens", self.min_tokens, f"at most max_tokens, which is {self.max_tokens}")
        if self.stop and not self.detokenize:
            raise _out_of_range("stop", self.stop, "no stop strings when detokenize is False")

    def clone(self) -> "SamplingParams":
        """A copy that shares no list with the original."""
        clone = copy.copy(self)
        for name in _CONTAINERS:
            object.__setattr__(clone, name, _plain(getattr(self, name)))
        object.__setattr__(clone, "structured_outputs", copy.deepcopy(self.structured_outputs))
        return clone

    @classmethod
    def from_proto(cls, message: "inference_pb2.SamplingParams") -> "SamplingParams":
        """The parameters that a message sets, as far as they are those of this class."""
        given: dict[str, Any] = {}
        for descriptor, value in message.ListFields():
            kind = BY_NAME[descriptor.name].kind
            if kind is Kind.FLOAT:
                given[descriptor.name] = _unrounded(value)
            elif kind is Kind.BIASES:
                given[descriptor.name] = {token_id: _unrounded(bias) for token_id, bias in value.items()}
            elif kind not in (Kind.MESSAGE, Kind.OBJECT):
                given[descriptor.name] = list(value) if kind in (Kind.TEXTS, Kind.TOKEN_IDS) else value
        return cls(**given)

    def to_proto(self) -> "inference_pb2.SamplingParams":
        """The wire form: what was not given is left out.

        Raises:
            InvalidRequest: an attribute was assigned a value that is not accepted.
        """
        from pagewire.v1 import inference_pb2

        self._check()
        message = inference_pb2.SamplingParams()
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _CONTAINERS:  # They may have been filled since.
                if value and field.name == "logit_bias":
                    message.logit_bias.update(value)
                elif value and field.name == "extra_args":
                    message.extra_args.update(value)
                elif value:
                    getattr(message, field.name).extend(_as_list(value))
            elif field.name == "structured_outputs":
                if self.structured_outputs is not None:
                    message.structured_outputs.CopyFrom(self.structured_outputs.to_proto())
            elif field.name in self._given:
                if field.name == "max_tokens" and value is None:
                    message.max_tokens = MAX_INT32
                elif value is not None and not (field.name == "seed" and value == -1):
                    setattr(message, field.name, value)
        return message


_NOT_SERVED: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "flat_logprobs": (True, False),
    "guided_decoding": (),
    "logits_processors": ([],),
    "logprob_token_ids": (),
    "output_kind": tuple(RequestOutputKind),
    "repetition_detection": (),
    "routed_experts_prompt_start": (0,),
    "skip_clone": (True, False),
    "skip_reading_prefix_cache": (False,),
    "thinking_token_budget": (),
}
"""vLLM's further parameters. Each is accepted if it is None or has one of the values given, which change nothing."""


def _refusing_by_name(build: Callable[..., None]) -> Callable[..., None]:
    """Makes a constructor accept parameters of _NOT_SERVED that change nothing, and refuse others by name."""

    @wraps(build)
    def init(self: object, *args: Any, **given: Any) -> None:
        kind = given.get("output_kind")
        if not given.keys() <= _SERVED.keys():
            for name in given.keys() & _NOT_SERVED.keys():
                value = given.pop(name)
                if value is not None and value not in _NOT_SERVED[name]:
                    raise InvalidRequest.of_field(f"sampling_params.{name}", f"{value!r} given, which is not served")
        build(self, *args, **given)
        assert isinstance(self, SamplingParams)
        object.__setattr__(self, "_given", frozenset(given))
        if kind is not None:
            object.__setattr__(self, "output_kind", kind)
        for name in _CONTAINERS:
            object.__setattr__(self, name, _plain(getattr(self, name)))
        self._check()

    return init


_NOTES = {
    "max_tokens": " None: until the context ends.",
    "seed": " -1 means the same as None.",
    "stop": " One string may be given alone.",
}
"""What is said of a parameter only in Python."""
_SERVED = dict.fromkeys(field.name for field in fields(SamplingParams))
_NUMBERS = tuple(BY_NAME[name] for name in _SERVED if BY_NAME[name].kind in (Kind.INT, Kind.FLOAT))
_TEXTS = tuple(name for name in _SERVED if BY_NAME[name].kind is Kind.TEXTS)
_TOKEN_IDS = tuple(name for name in _SERVED if BY_NAME[name].kind is Kind.TOKEN_IDS)
_LISTS = (*_TEXTS, *_TOKEN_IDS)
_CONTAINERS = (*_LISTS, "logit_bias", "extra_args")
_PLAIN_TYPES = {bool, int, float, str, type(None)}
SamplingParams.__doc__ = f"{SamplingParams.__doc__}\n    Attributes:\n" + "".join(
    f"        {name}: {BY_NAME[name].description}{_NOTES.get(name, '')}\n" for name in _SERVED
)
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


def _is_json(value: Any) -> bool:
    """Whether JSON can express it, with numbers that are doubles."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_encodable(key) and _is_json(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    if isinstance(value, str):
        return is_encodable(value)
    if isinstance(value, int):  # True and False among them
        return abs(value) <= MAX_WHOLE_DOUBLE
    return value is None or (isinstance(value, float) and math.isfinite(value))


def _unrounded(value: float) -> float:
    """The number that was rounded to 32 bits, if it had up to seven digits."""
    return float(f"{value:.7g}")


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


def _check_number(parameter: Parameter, value: object) -> None:
    """Raises InvalidRequest if the value is no number of the parameter's kind and range."""
    is_int = parameter.kind is Kind.INT
    if not isinstance(value, bool) and isinstance(value, int if is_int else int | float):
        assert parameter.accepted is not None
        if parameter.accepted.holds(value) and (not is_int or parameter.name == "seed" or value <= MAX_INT32):
            return
    what = "a whole number" if is_int else "a finite number"
    raise _out_of_range(parameter.name, value, f"{what}, {parameter.limits_text or '64 bits'}")


def _out_of_range(name: str, value: object, accepted: str) -> InvalidRequest:
    return InvalidRequest.of_field(f"sampling_params.{name}", f"{value!r} given, accepted: {accepted}")
