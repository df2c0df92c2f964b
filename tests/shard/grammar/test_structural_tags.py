"""Structural tags: free text in which certain texts begin a constrained part."""

import json
from typing import Any

import grpc
import pytest
from grammar_world import matches, outputs, prepare

SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": False}
JSON = {"type": "json_schema", "json_schema": SCHEMA}


def tag(begin: Any, content: dict[str, Any], end: Any) -> dict[str, Any]:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def triggered(**more: Any) -> dict[str, Any]:
    tags = [tag("<f=a>", JSON, "</f>"), tag("<f=b>", {"type": "regex", "pattern": "[0-9]+"}, "</f>")]
    return {"type": "triggered_tags", "triggers": ["<f="], "tags": tags, **more}


def token(text: str | int) -> dict[str, Any]:
    return {"type": "token", "token": text}


BY_TOKEN = {
    "type": "token_triggered_tags",
    "trigger_tokens": ["<|user|>"],
    "tags": [tag(token("<|user|>"), JSON, token("<|end|>"))],
}
CALL_A, CALL_B = '<f=a>{"x": 1}</f>', "<f=b>42</f>"

FORMATS: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "const_string": ({"type": "const_string", "value": 'a\n"b'}, ['a\n"b'], ["a"]),
    "json_schema": (JSON, ['{"x": 1}'], ["{}"]),
    "grammar": ({"type": "grammar", "grammar": 'root ::= "a" | "b"'}, ["a", "b"], ["c"]),
    "regex": ({"type": "regex", "pattern": "a+"}, ["aa"], ["b"]),
    "any_text": ({"type": "any_text"}, ["", "whatever\n"], []),
    "any_text without": (
        {"type": "any_text", "excludes": ["bad", "/*"]},
        ["good", "ba d"],
        ["so bad", "/*", "a bad b"],
    ),
    "any_text of some length": ({"type": "any_text", "max_chars": 3}, ["", "abc", "äöü"], ["abcd"]),
    "sequence": (
        {"type": "sequence", "elements": [{"type": "const_string", "value": "r: "}, JSON]},
        ['r: {"x": 2}'],
        ["r: "],
    ),
    "or": ({"type": "or", "elements": [{"type": "const_string", "value": "n"}, JSON]}, ["n", '{"x": 2}'], ["", "nn"]),
    "optional": ({"type": "optional", "content": {"type": "const_string", "value": "a"}}, ["", "a"], ["aa"]),
    "star": ({"type": "star", "content": {"type": "const_string", "value": "ab"}}, ["", "abab"], ["aba"]),
    "plus": ({"type": "plus", "content": {"type": "const_string", "value": "ab"}}, ["ab", "abab"], [""]),
    "repeat": (
        {"type": "repeat", "min": 1, "max": 2, "content": {"type": "const_string", "value": "a"}},
        ["a", "aa"],
        ["", "aaa"],
    ),
    "repeat without end": (
        {"type": "repeat", "min": 2, "max": -1, "content": {"type": "const_string", "value": "a"}},
        ["aa", "aaaa"],
        ["a"],
    ),
    "tag": (
        tag("<a>", JSON, ["</a>", "<end>"]),
        ['<a>{"x": 1}</a>', '<a>{"x": 1}<end>'],
        ['<a>{"x": 1}', '{"x": 1}</a>'],
    ),
    "tag of text": (
        tag("<a>", {"type": "any_text"}, ["</a>", "<end>"]),
        ["<a>x < y</a>", "<a><end>"],
        ["<a>x</a>y", "<a>x</a></a>", "<a>x"],
    ),
    "tag of text without": (tag("<a>", {"type": "any_text", "excludes": ["<"]}, ";"), ["<a>x;"], ["<a>x<y;"]),
    "tag of tokens": (
        tag(token("<|user|>"), {"type": "any_tokens"}, token("<|end|>")),
        ["<|user|>x <|bos|> y<|end|>"],
        ["<|user|>x", "<|user|>x<|end|>y"],
    ),
    "token by id": (token(5), ["<|assistant|>"], ["x"]),
    "triggered_tags": (
        triggered(),
        ["", "just text", f"call {CALL_A}", f"{CALL_A}{CALL_B} and text", f"< f <f {CALL_B}"],
        ["<f=", "<f=a>{}</f>", f"{CALL_A} <f=c>", "<f=b>x</f>", '<f=a>{"x": 1}'],
    ),
    "at least one": (triggered(at_least_one=True), [CALL_A, f"{CALL_A} then {CALL_B}"], ["", "text", f"text {CALL_A}"]),
    "stop after the first": (
        triggered(stop_after_first=True),
        [f"text {CALL_A}", "text"],
        [f"{CALL_A} ", CALL_A + CALL_B],
    ),
    "exactly one": (
        triggered(stop_after_first=True, at_least_one=True),
        [CALL_A, CALL_B],
        ["", "text", CALL_A + CALL_B],
    ),
    "triggered without": (triggered(excludes=["##"]), ["# text", CALL_A], ["##", f"a ## {CALL_A}"]),
    "triggered within a tag": (
        tag("<r>", triggered(), "</r>"),
        ["<r>text</r>", f"<r>text {CALL_A} more</r>"],
        ["<r>text", f"<r>{CALL_A}", "<r>a</r>b", "<r><f=</r>"],
    ),
    "token_triggered_tags": (
        BY_TOKEN,
        ["text", 'text<|user|>{"x": 1}<|end|>', 'a <|user|>{"x": 1}<|end|> b'],
        ["<|user|>", "<|user|>{}<|end|>", '<|user|>{"x": 1}'],
    ),
    "token_triggered_tags at least one": (
        {**BY_TOKEN, "at_least_one": True},
        ['<|user|>{"x": 1}<|end|>'],
        ["", "text"],
    ),
    "tags_with_separator": (
        {"type": "tags_with_separator", "tags": [tag("[", JSON, "]")], "separator": ", "},
        ["", '[{"x": 1}]', '[{"x": 1}], [{"x": 2}]'],
        ['[{"x": 1}][{"x": 2}]', '[{"x": 1}], '],
    ),
    "tags_with_separator, one": (
        {
            "type": "tags_with_separator",
            "tags": [tag("[", JSON, "]")],
            "separator": ",",
            "at_least_one": True,
            "stop_after_first": True,
        },
        ['[{"x": 1}]'],
        ["", '[{"x": 1}],[{"x": 1}]'],
    ),
    "reasoning, then text with calls": (
        {"type": "sequence", "elements": [tag("<think>", {"type": "any_text"}, "</think>"), triggered()]},
        [f"<think>so {CALL_B} hm</think>", f"<think></think>text {CALL_A}"],
        ["<think>", "text", "<think></think><f=c>"],
    ),
    "special tokens in texts": (
        {"type": "triggered_tags", "triggers": ["<|user|>"], "tags": [tag("<|user|>go:", JSON, "<|end|>")]},
        ["text", 'text <|user|>go:{"x": 1}<|end|> more'],
        ["<|user|>", '<|user|>{"x": 1}<|end|>'],
    ),
}


@pytest.mark.parametrize("what", FORMATS)
def test_formats_match_what_they_say(grammars, start, what: str):
    chosen, good, bad = FORMATS[what]
    matcher = start(structural_tag=json.dumps({"type": "structural_tag", "format": chosen}))
    assert [text for text in good if not matches(grammars, matcher, text)] == []
    assert [text for text in bad if matches(grammars, matcher, text)] == []


def test_the_older_form_is_read_too(grammars, start):
    structures = [{"begin": "<f=a>", "schema": SCHEMA, "end": "</f>"}]
    matcher = start(structural_tag=json.dumps({"structures": structures, "triggers": ["<f="]}))
    assert matches(grammars, matcher, f"text {CALL_A} text")
    assert not matches(grammars, matcher, "text <f=a>{}</f>")


def test_options_of_json_hold_within_tags(grammars, start):
    tight = start(
        structural_tag=json.dumps({"type": "structural_tag", "format": tag("<", JSON, ">")}),
        disable_any_whitespace=True,
    )
    assert matches(grammars, tight, '<{"x":1}>')
    assert not matches(grammars, tight, '<{"x": 1}>')


def test_reasoning_may_come_before_a_tag(grammars, start):
    matcher = start(
        structural_tag=json.dumps({"type": "structural_tag", "format": triggered()}), reasoning_end="</think>"
    )
    assert matches(grammars, matcher, f"<f=x </think> text {CALL_A}")
    assert not matches(grammars, matcher, CALL_A)


REFUSED: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "not valid JSON"),
    "no object": ([], "no object"),
    "neither form": ({"type": "structural_tag"}, '"format"'),
    "an unknown format": ({"type": "dispatch"}, "'dispatch' is not supported"),
    "another style": ({**JSON, "style": "qwen_xml"}, "'qwen_xml'"),
    "any order": ({**JSON, "any_order": True}, "any_order"),
    "limits in tokens": ({"type": "any_text", "max_tokens": 5}, "max_tokens is not supported"),
    "text before something else": (
        {"type": "sequence", "elements": [{"type": "any_text"}, JSON]},
        "any_text before something else",
    ),
    "a tag without a trigger": (triggered(triggers=["<g="]), "no trigger begins the tag '<f=a>'"),
    "a token that there is not": (token("<|nobody|>"), "'<|nobody|>' is no special token"),
    "an unsupported keyword": ({**JSON, "json_schema": {"not": {}}}, "`not` is not supported"),
    "a schema that is missing": ({"type": "json_schema"}, "no object"),
    "a field of another type": ({"type": "const_string", "value": 1}, "value of const_string must be a string"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_supported_is_refused_by_name(grammars, what: str):
    chosen, message = REFUSED[what]
    text = (
        chosen
        if isinstance(chosen, str)
        else json.dumps(
            {"type": "structural_tag", "format": chosen}
            if isinstance(chosen, dict) and what != "neither form"
            else chosen
        )
    )
    answer = prepare(grammars, "refused", outputs(structural_tag=text))
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert message in answer.message
