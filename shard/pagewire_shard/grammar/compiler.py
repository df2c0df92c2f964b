"""Compiles sources, and says by name what is not supported."""

import re
from dataclasses import dataclass

from llguidance import LLMatcher
from pagewire.v1 import inference_pb2

from pagewire_shard.grammar.errors import SourceRefused, TooCostly
from pagewire_shard.grammar.json_schema import parse_schema, place_of
from pagewire_shard.grammar.limits import MAX_SOURCE_BYTES, parser_limits
from pagewire_shard.grammar.mask_cost import COSTLY, check_mask_cost
from pagewire_shard.grammar.source_options import SourceOptions
from pagewire_shard.grammar.sources import grammar_text
from pagewire_shard.grammar.vocabulary import Vocabulary

MAX_MESSAGE_CHARS = 500
_SCHEMA_FAULTS = (
    (r'Unimplemented keys: \["([^"]*)"', "{0}", "`{0}` is not supported"),
    (r"oneOf constraints are not supported", "oneOf", "`oneOf` whose options may both match is not supported"),
    (r"Unknown format: (.*)", "format", "`format` {0!r} is not supported"),
    (r"Resource '([^']*)'", "$ref", "`$ref` to another document is not supported: {0!r}"),
    (r"patternProperty regexes (.*)", "patternProperties", "`patternProperties` that overlap are not supported: {0}"),
    (r"float range: (.*)", None, "`minimum` or `maximum` of this size is not supported: {0}"),
    (r"(regex parse error.*)", "pattern", "`pattern` cannot be read: {0}"),
    (r"Unsatisfiable schema: (.*)", None, "no value satisfies the schema: {0}"),
)
"""What llguidance says, the keyword that it is about, and how we say it."""


@dataclass(frozen=True, slots=True)
class CompiledGrammar:
    """A grammar that compiles within the limits."""

    text: str
    """In llguidance's form."""
    num_bytes: int
    """Memory that it takes once it is compiled."""


def compiled_matcher(vocabulary: Vocabulary, text: str) -> LLMatcher:
    """The matcher of a grammar's text, at its start, with its first mask computed. Drops the GIL.

    Raises SourceRefused and TooCostly.
    """
    matcher = LLMatcher(vocabulary.tokenizer, text, log_level=0, limits=parser_limits())
    mask = b"" if matcher.is_error() else matcher.compute_bitmask()
    if matcher.is_error():
        raise _failure(one_line(matcher.get_error()))
    if not any(mask):
        raise SourceRefused("the grammar matches no text")
    return matcher


def compile_source(outputs: inference_pb2.StructuredOutputs, vocabulary: Vocabulary, options: SourceOptions) -> str:
    """The text of a request's grammar, after it has been compiled once, and followed for some tokens.

    Raises SourceRefused and TooCostly.
    """
    if outputs.ByteSize() > MAX_SOURCE_BYTES:
        raise TooCostly(f"the grammar's source has {outputs.ByteSize():,} bytes, at most {MAX_SOURCE_BYTES:,} are read")
    text = grammar_text(outputs, options)
    try:
        check_mask_cost(compiled_matcher(vocabulary, text), vocabulary)
    except SourceRefused as error:
        raise SourceRefused(named(str(error), outputs)) from None
    return text


def named(message: str, outputs: inference_pb2.StructuredOutputs) -> str:
    """llguidance's message in our words, with the place in the JSON schema that it is about."""
    if outputs.WhichOneof("constraint") not in ("json", "structural_tag"):
        return message
    for pattern, keyword, words in _SCHEMA_FAULTS:
        if found := re.search(pattern, message):
            place = _place(keyword.format(*found.groups()), outputs) if keyword else ""
            return f"JSON schema: {words.format(*found.groups())}{place}"
    return f"JSON schema: {message}" if outputs.WhichOneof("constraint") == "json" else message


def _place(keyword: str, outputs: inference_pb2.StructuredOutputs) -> str:
    """Where the keyword stands first, if that is known."""
    if outputs.WhichOneof("constraint") != "json":
        return ""
    place = place_of(parse_schema(outputs.json), keyword)
    return f" (at {place})" if place else ""


def _failure(message: str) -> SourceRefused | TooCostly:
    if message.startswith("recursion limit exceeded"):
        return TooCostly("the grammar is nested too deeply")
    if message.startswith("NoExtension"):
        return SourceRefused("the grammar matches no text")
    return TooCostly(message) if COSTLY.search(message) else SourceRefused(message)


def one_line(message: str) -> str:
    """The first lines of an error, as one."""
    return " ".join(message.split())[:MAX_MESSAGE_CHARS]
