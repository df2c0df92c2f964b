"""What an output must match, with vLLM's names."""

import json as json_module
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pagewire.errors import InvalidRequest
from pagewire.text import is_encodable

if TYPE_CHECKING:
    from pagewire.v1 import inference_pb2

_FIELD = "sampling_params.structured_outputs"


@dataclass(slots=True, kw_only=True)
class StructuredOutputsParams:
    """Constrains an output: exactly one of the first six must be given.

    Args:
        json: A JSON schema: as a string, as a dict, or a pydantic model.
        regex: A regular expression that the whole output matches.
        choice: Strings, one of which is the output.
        grammar: A context-free grammar, in Lark's notation or as EBNF with `::=`.
        json_object: True: any JSON object.
        structural_tag: Free text in which triggers begin a constrained part: a dict, or JSON as a string.
        disable_any_whitespace: Allows no whitespace between the tokens of JSON.
        disable_additional_properties: Forbids properties that a schema does not name, where it says nothing about them.
        whitespace_pattern: A regular expression for the whitespace between the tokens of JSON.
        reasoning_end: Free text comes first, up to and including this text; the constraint begins behind it.
        reasoning_start: What the free text begins with, for models that may leave it out: it then comes only if the
            prompt ends with this text or the output begins with it.

    Raises:
        InvalidRequest: none or several constraints are given, or one of another type. What a schema or a grammar may
            hold is for the server to say.
    """

    json: str | Mapping[str, Any] | type[Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | Mapping[str, Any] | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    reasoning_end: str | None = None
    reasoning_start: str | None = None

    def __post_init__(self) -> None:
        self.to_proto()

    def to_proto(self) -> "inference_pb2.StructuredOutputs":
        """The wire form. Raises InvalidRequest."""
        from pagewire.v1 import inference_pb2

        given = [name for name in _CONSTRAINTS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            what = " and ".join(given) if given else "none of them"
            raise InvalidRequest.of_field(_FIELD, f"{what} given, accepted: exactly one of {', '.join(_CONSTRAINTS)}")
        message = inference_pb2.StructuredOutputs()
        (name,) = given
        if name == "choice":
            message.choice.options.extend(self._options())
        elif name == "json_object":
            message.json_object = True
        elif name in ("json", "structural_tag"):
            setattr(message, name, _checked_text(name, _as_json(name, getattr(self, name))))
        else:
            setattr(message, name, _checked_text(name, getattr(self, name)))
        for option in ("disable_any_whitespace", "disable_additional_properties"):
            if getattr(self, option):
                setattr(message, option, True)
        for option in ("whitespace_pattern", "reasoning_end", "reasoning_start"):
            if (text := getattr(self, option)) is not None:
                setattr(message, option, _checked_text(option, text))
        return message

    def _options(self) -> list[str]:
        if isinstance(self.choice, str) or not isinstance(self.choice, Sequence) or not self.choice:
            raise _refusal("choice", self.choice, "a list of strings")
        return [_checked_text("choice", option) for option in self.choice]


_CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


def _as_json(name: str, value: Any) -> Any:
    """A schema as text."""
    if hasattr(value, "model_json_schema"):
        value = value.model_json_schema()
    if not isinstance(value, Mapping):
        return value
    try:
        return json_module.dumps(value)
    except (TypeError, ValueError) as error:
        raise _refusal(name, value, f"what JSON can express ({error})") from None


def _checked_text(name: str, text: object) -> str:
    if not isinstance(text, str) or not text or not is_encodable(text):
        raise _refusal(name, text, "text that is not empty and that UTF-8 can encode")
    return text


def _refusal(name: str, value: object, accepted: str) -> InvalidRequest:
    shown = repr(value)
    shown = shown if len(shown) <= 100 else f"{shown[:100]}..."
    return InvalidRequest.of_field(f"{_FIELD}.{name}", f"{shown} given, accepted: {accepted}")
