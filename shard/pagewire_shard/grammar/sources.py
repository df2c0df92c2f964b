"""From StructuredOutputs to llguidance's grammar: JSON with a list of grammars, of which the first is the start."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from llguidance import regex_to_lark
from pagewire.v1 import inference_pb2

from pagewire_shard.grammar.errors import SourceRefused
from pagewire_shard.grammar.json_schema import JsonOptions, guided_schema, parse_schema
from pagewire_shard.grammar.lark import ANY_TEXT, literal, pieces, to_lark

Part = dict[str, Any]
"""One entry of the list of grammars: `name` and `lark_grammar` or `json_schema`."""


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How sources are read: the same for all requests of a shard."""

    special_tokens: Mapping[str, int]
    """Ids of the vocabulary's special tokens by their text."""
    eos_token_ids: tuple[int, ...] = ()
    """The model's end-of-sequence tokens."""
    coerce_one_of: bool = False
    """Reads `oneOf` as `anyOf` where the options cannot be told apart by their form."""
    lenient: bool = False
    """Ignores keywords and formats of JSON schemas that are not supported."""


def grammar_text(outputs: inference_pb2.StructuredOutputs, options: SourceOptions) -> str:
    """The grammar of what a request asks for. Raises SourceRefused."""
    parts = _constraint(outputs, options)
    if outputs.HasField("reasoning_end"):
        if not outputs.reasoning_end:
            raise SourceRefused("reasoning_end is empty")
        parts[0]["name"] = "constrained"
        parts.insert(0, {"lark_grammar": _behind_reasoning(outputs.reasoning_end, options)})
    return json.dumps({"grammars": parts})


def _constraint(outputs: inference_pb2.StructuredOutputs, options: SourceOptions) -> list[Part]:
    match outputs.WhichOneof("constraint"):
        case "json":
            schema = parse_schema(outputs.json)
            return [{"json_schema": guided_schema(schema, _json_options(outputs, options))}]
        case "json_object":
            if not outputs.json_object:
                raise SourceRefused("json_object is false: leave structured_outputs out to constrain nothing")
            return [{"json_schema": guided_schema({"type": "object"}, _json_options(outputs, options))}]
        case "regex":
            return [{"lark_grammar": f"start: {_regex(outputs.regex)}"}]
        case "choice":
            if not outputs.choice.options:
                raise SourceRefused("choice has no options")
            return [{"lark_grammar": _choice(outputs.choice.options)}]
        case "grammar":
            return [{"lark_grammar": to_lark(outputs.grammar)}]
        case "structural_tag":
            raise SourceRefused("structural_tag is not supported")
        case _:
            raise SourceRefused("structured_outputs has no constraint")


def _json_options(outputs: inference_pb2.StructuredOutputs, options: SourceOptions) -> JsonOptions:
    return JsonOptions(
        any_whitespace=not outputs.disable_any_whitespace,
        whitespace_pattern=outputs.whitespace_pattern if outputs.HasField("whitespace_pattern") else None,
        additional_properties=not outputs.disable_additional_properties,
        coerce_one_of=options.coerce_one_of,
        lenient=options.lenient,
    )


def _choice(options: Collection[str]) -> str:
    """One lexeme for all options: llguidance reads it many times faster than a rule of as many alternatives."""
    texts = [json.dumps(text, ensure_ascii=False) for text in dict.fromkeys(options)]
    return f"start: CHOICE\nCHOICE: {' | '.join(texts)}"


def _regex(pattern: str) -> str:
    """A regular expression between slashes."""
    if not pattern:
        return '""'
    between_slashes = regex_to_lark(pattern, use_ascii="")
    return f"/{between_slashes}/"


def _behind_reasoning(end: str, options: SourceOptions) -> str:
    """Free text up to and including `end`, then the grammar `constrained`.

    A special token ends the text by its id, and other special tokens may come before it.
    """
    first, *rest = pieces(end, options.special_tokens)
    if first in options.special_tokens:
        never = sorted({options.special_tokens[first], *options.eos_token_ids})
        behind = " ".join(literal(piece, options.special_tokens) for piece in rest)
        return f"start: <[^{','.join(map(str, never))}]>* {first} {behind} @constrained"
    if rest:
        raise SourceRefused("reasoning_end has a special token behind other text; only its first part may be one")
    return f"start: reasoning @constrained\nreasoning[suffix={json.dumps(end, ensure_ascii=False)}]: {ANY_TEXT}"
