"""What the sources of grammars mean: the texts that they match, and what is refused by name."""

import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grammar_world import EOS, STOP, allowed_next, encode, matches, outputs, prepare

Start = Callable[..., Any]


def refusal(grammars, **fields: Any) -> str:
    answer = prepare(grammars, "refused", outputs(**fields))
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT, answer
    return answer.message


def check(grammars, matcher, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not matches(grammars, matcher, text)] == []
    assert [text for text in bad if matches(grammars, matcher, text)] == []


SIMPLE = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
NESTED = {"type": "object", "properties": {"properties": {"type": "object", "properties": {"b": {"type": "null"}}}}}

SOURCES: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "a JSON schema": (
        {"json": json.dumps(SIMPLE)},
        ['{"a": 1}', '{ "a" :\n1 }', '{"a":1,"b":2}', '{\r\n\t"a": 1,\n' + 40 * " " + '"b": {\n}\n}'],
        ["{}", '{"a": "x"}', '{"a":   1}', '{\n\n"a": 1}', "{\n" + 41 * " " + '"a": 1}'],
    ),
    "a schema that allows everything": ({"json": "true"}, ["1", '"x"', "[]"], ["x"]),
    "no whitespace": (
        {"json": json.dumps(SIMPLE), "disable_any_whitespace": True},
        ['{"a":1}'],
        ['{"a": 1}', '{"a":1 }'],
    ),
    "whitespace of one kind": (
        {"json": json.dumps(SIMPLE), "whitespace_pattern": " ?"},
        ['{"a":1}', '{ "a": 1}'],
        ['{"a":  1}', '{\n"a":1}'],
    ),
    "no additional properties": (
        {"json": json.dumps(SIMPLE), "disable_additional_properties": True},
        ['{"a": 1}'],
        ['{"a": 1, "b": 2}'],
    ),
    "no additional properties at any depth, whatever properties are called": (
        {"json": json.dumps(NESTED), "disable_additional_properties": True},
        ['{"properties": {"b": null}}', '{"properties": {}}'],
        ['{"properties": {"c": null}}', '{"b": null}'],
    ),
    "whitespace of ECMA 262 in patterns": (
        {"json": json.dumps({"type": "string", "pattern": r"^\s[\s\d]\S\\s$"})},
        ['" 1a\\\\s"', '"\u3000\ufeff1\\\\s"'],
        ['"\u00851a\\\\s"', '" 1\ufeff\\\\s"', '" 1a\\\\ "'],
    ),
    "whitespace in patterns of properties": (
        {"json": json.dumps({"patternProperties": {r"^\s$": False}, "minProperties": 0})},
        ['{"\u0085": 1}'],
        ['{" ": 1}'],
    ),
    "any JSON object": ({"json_object": True}, ["{}", '{"a": [1, {"b": null}]}'], ["[]", "1", '{"a"}']),
    "a regular expression": ({"regex": r"[a-z]{2}/\d+"}, ["ab/1", "zz/42"], ["a/1", "ab/", "ab/1x"]),
    "a regular expression with anchors": ({"regex": "^ab?$"}, ["a", "ab"], ["", "b"]),
    "the empty regular expression": ({"regex": ""}, [""], ["a"]),
    "a choice": ({"choice": ["yes", 'no "1"\n', "é/\\"]}, ["yes", 'no "1"\n', "é/\\"], ["ye", "", "yesno"]),
    "a choice with the empty text": ({"choice": ["", "a"]}, ["", "a"], ["aa"]),
    "Lark": (
        {"grammar": 'start: greeting " " NAME\ngreeting: "hi" | "ho"\nNAME: /[a-z]+/'},
        ["hi bob"],
        ["hi ", "bob"],
    ),
    "EBNF": ({"grammar": 'root ::= expr\nexpr ::= term ("+" term)*\nterm ::= [0-9]+'}, ["1+22+3", "4"], ["1+", "+1"]),
    "reasoning, then JSON": (
        {"json": json.dumps(SIMPLE), "reasoning_end": "</think>"},
        ['hm, {"a": "no"} </think>{"a": 1}', '</think>{"a": 1}'],
        ['{"a": 1}', 'x</think>y</think>{"a": 1}', "x</think>", "x</think>{}"],
    ),
    "reasoning that a special token ends": (
        {"regex": "yes|no", "reasoning_end": "<|end|>"},
        ["maybe<|end|>yes", "<|end|>no", "some <|user|> token<|end|>no"],
        ["yes", "maybe<|end|>maybe", "a<|end|>b<|end|>yes"],
    ),
    "reasoning that a special token and text end": (
        {"regex": "yes|no", "reasoning_end": "<|end|>\n\n"},
        ["maybe<|end|>\n\nyes"],
        ["maybe<|end|>yes"],
    ),
    "JSON, or reasoning before it": (
        {"json": json.dumps(SIMPLE), "reasoning_start": "<think>", "reasoning_end": "</think>"},
        ['{"a": 1}', '<think>hm {"a": "no"}</think>{"a": 1}', '<think></think>{"a": 1}'],
        ['</think>{"a": 1}', 'x{"a": 1}', '<think>{"a": 1}', '<think>x</think>y{"a": 1}'],
    ),
    "a word, or reasoning between special tokens before it": (
        {"regex": "yes|no", "reasoning_start": "<|user|>", "reasoning_end": "<|end|>"},
        ["yes", "<|user|>maybe<|end|>yes"],
        ["maybe<|end|>yes", "<|user|>yes", "<|user|>a<|end|>maybe"],
    ),
}


@pytest.mark.parametrize("what", SOURCES)
def test_sources_match_what_they_say(grammars, start: Start, what: str):
    fields, good, bad = SOURCES[what]
    check(grammars, start(**fields), good, bad)


def test_reasoning_never_ends_the_sequence(grammars, start: Start):
    for end in ("</think>", "<|end|>"):
        matcher = start(regex="yes", reasoning_end=end)
        matcher.advance(encode("well"))
        assert EOS not in allowed_next(grammars, matcher)
        assert (STOP in allowed_next(grammars, matcher)) is (end == "<|end|>")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no constraint": ({}, "no constraint"),
    "not": ({"json": '{"properties": {"a/b": {"not": {}}}}'}, "`not` is not supported (at #/properties/a~1b)"),
    "a keyword in a list": (
        {"json": '{"anyOf": [{}, {"contains": {}}]}'},
        "`contains` is not supported (at #/anyOf/1)",
    ),
    "a property that is called like a keyword": (
        {"json": '{"properties": {"not": {"items": {"not": {}}}}}'},
        "(at #/properties/not/items)",
    ),
    "oneOf": (
        {"json": '{"oneOf": [{"type": "string", "minLength": 1}, {"type": "string", "maxLength": 1}]}'},
        "`oneOf` whose options may both match is not supported (at #)",
    ),
    "leniency that the schema asks for itself": ({"json": '{"x-guidance": {"lenient": true}, "not": {}}'}, "`not`"),
    "an unknown format": (
        {"json": '{"items": {"type": "string", "format": "color"}}'},
        "`format` 'color' is not supported (at #/items)",
    ),
    "patterns that overlap": (
        {"json": '{"patternProperties": {"a": {}, "b": {}}}'},
        "`patternProperties` that overlap",
    ),
    "a number that is too large": ({"json": '{"type": "number", "minimum": 1e300}'}, "`minimum`"),
    "a malformed pattern": (
        {"json": '{"properties": {"p": {"type": "string", "pattern": "("}}}'},
        "(at #/properties/p)",
    ),
    "a schema elsewhere": (
        {"json": '{"$ref": "https://example.com/s"}'},
        "`$ref` to another document is not supported: 'https://example.com/s' (at #)",
    ),
    "a schema that no value satisfies": ({"json": "false"}, "no value satisfies"),
    "no JSON": ({"json": "{"}, "not valid JSON"),
    "NaN": ({"json": '{"const": NaN}'}, "NaN"),
    "a list": ({"json": "[]"}, "no object"),
    "a malformed regex": ({"regex": "a("}, "unclosed group"),
    "a look-ahead": ({"regex": "a(?=b)b"}, "look-ahead"),
    "a back reference": ({"regex": r"(a)\1"}, "backreferences are not supported"),
    "no options": ({"choice": []}, "no options"),
    "json_object that is false": ({"json_object": False}, "json_object is false"),
    "malformed Lark": ({"grammar": "start: a"}, "a"),
    "malformed EBNF": ({"grammar": 'root ::= "a'}, "cannot be read as EBNF"),
    "an unknown special token": ({"grammar": "start: <|nobody|>"}, "<|nobody|>"),
    "a grammar without text": ({"grammar": "start: a\na: a"}, "matches no text"),
    "an empty end of reasoning": ({"regex": "a", "reasoning_end": ""}, "reasoning_end is empty"),
    "reasoning that ends in a special token": ({"regex": "a", "reasoning_end": "x<|end|>"}, "reasoning_end"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_supported_is_refused_by_name(grammars, what: str):
    fields, message = REFUSED[what]
    assert message in refusal(grammars, **fields)
