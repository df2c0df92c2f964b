"""From StructuredOutputs to llguidance's grammar: JSON with a list of grammars, of which the first is the start."""

import json
from collections.abc import Collection

from pagewire.v1 import inference_pb2

from pagewire_shard.grammar.errors import SourceRefused
from pagewire_shard.grammar.json_schema import JsonOptions, guided_schema, parse_schema
from pagewire_shard.grammar.lark import ANY_TEXT, any_token_but, literal, pieces, quoted, regex, to_lark
from pagewire_shard.grammar.source_options import Part, SourceOptions
from pagewire_shard.grammar.structural_tag import structural_tag_parts


def grammar_text(outputs: inference_pb2.StructuredOutputs, options: SourceOptions) -> str:
    """The grammar of what a request asks for. Raises SourceRefused."""
    parts = _constraint(outputs, options)
    if outputs.HasField("reasoning_end"):
        if not outputs.reasoning_end:
            raise SourceRefused("reasoning_end is empty")
        parts[0]["name"] = "constrained"
        start = outputs.reasoning_start if outputs.HasField("reasoning_start") else None
        parts.insert(0, {"lark_grammar": _behind_reasoning(start, outputs.reasoning_end, options)})
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
            return [{"lark_grammar": f"start: {regex(outputs.regex)}"}]
        case "choice":
            if not outputs.choice.options:
                raise SourceRefused("choice has no options")
            return [{"lark_grammar": _choice(outputs.choice.options)}]
        case "grammar":
            return [{"lark_grammar": to_lark(outputs.grammar)}]
        case "structural_tag":
            return structural_tag_parts(outputs.structural_tag, options, _json_options(outputs, options))
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
    texts = [quoted(text) for text in dict.fromkeys(options)]
    return f"start: CHOICE\nCHOICE: {' | '.join(texts)}"


def _behind_reasoning(start: str | None, end: str, options: SourceOptions) -> str:
    """Free text up to and including `end`, then the grammar `constrained`.

    A special token ends the text by its id, and other special tokens may come before it.

    Args:
        start: what the free text begins with, if there is any; None: it has begun.
    """
    first, *rest = pieces(end, options.special_tokens)
    if first in options.special_tokens:
        before = any_token_but({options.special_tokens[first], *options.eos_token_ids})
        reasoning = f"reasoning: {before}* {literal(end, options.special_tokens)}"
    elif rest:
        raise SourceRefused("reasoning_end has a special token behind other text; only its first part may be one")
    else:
        reasoning = f"reasoning[suffix={quoted(end)}]: {ANY_TEXT}"
    if start is None:
        return f"start: reasoning @constrained\n{reasoning}"
    return f"start: ({literal(start, options.special_tokens)} reasoning)? @constrained\n{reasoning}"
