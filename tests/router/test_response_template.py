"""A model's own description of its output is followed as transformers follows it."""

import json
import random

import pytest
from canitoolcall.fixtures import load_families, load_fixtures
from pagewire.v1 import inference_pb2
from pagewire_router.parsing.choice import OutputParsers, choose_format
from pagewire_router.parsing.events import ContentDelta, ReasoningDelta, ToolCallArguments, ToolCallStart
from transformers.cli.serving.utils import _RESPONSE_TEMPLATE_FALLBACKS
from transformers.utils.chat_parsing import parse_response

TEMPLATES = {types[0]: template for types, template in _RESPONSE_TEMPLATE_FALLBACKS.items()}
FAMILIES = {"qwen3-hermes": "qwen2", "qwen3-xml": "qwen3_5", "gemma4": "gemma4"}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "f", "parameters": {"properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}},
    }
]


def parse(template, pieces, *, tools=TOOLS, prompt="", stopped=True):
    format = choose_format("auto", "auto", templates={}, tokens=(), response_template=template)
    assert format.template is not None
    parser = OutputParsers(format, {}).new(tools=tools, prompt=prompt)
    events = [event for piece in pieces for event in parser.feed(piece)] + parser.finish(stopped=stopped)
    content = "".join(event.text for event in events if isinstance(event, ContentDelta))
    reasoning = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    names = [event.name for event in events if isinstance(event, ToolCallStart)]
    arguments = [json.loads(event.text) for event in events if isinstance(event, ToolCallArguments)]
    return content, reasoning, list(zip(names, arguments, strict=True))


def expected(template, text, tools, prompt):
    message = parse_response(text, template, prefix=prompt, tools=tools)
    calls = [call["function"] for call in message.get("tool_calls") or []]
    pairs = [(call["name"], call["arguments"]) for call in calls]
    return message.get("content") or "", message.get("reasoning_content") or "", pairs


def cases(family):
    reference = load_families()[family]
    for fixture in load_fixtures():
        if fixture.family == family and fixture.expected is not None:
            prompt = fixture.generation_prompt
            if prompt is None:
                prompt = reference.reference_for(fixture.models[0]).default_generation_prompt
            yield fixture, prompt


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_read_as_transformers_reads_them(family):
    template = TEMPLATES[FAMILIES[family]]
    num_same = 0
    for fixture, prompt in cases(family):
        text, tools = fixture.raw_output, [dict(tool) for tool in fixture.tools]
        try:
            want = expected(template, text, tools, prompt)
        except ValueError:
            continue  # It raises on calls that are cut off or malformed.
        if "text-after-call" in fixture.tags:
            continue  # It keeps the last part of the content alone.
        got = parse(template, [text], tools=tools, prompt=prompt, stopped=not fixture.truncated)
        assert got == want, fixture.id
        num_same += 1
    assert num_same > 30


@pytest.mark.parametrize("family", FAMILIES)
def test_results_do_not_depend_on_the_cut(family):
    template = TEMPLATES[FAMILIES[family]]
    rng = random.Random(0)
    for fixture, prompt in cases(family):
        text, tools = fixture.raw_output[:600], fixture.tools
        whole = parse(template, [text], tools=tools, prompt=prompt)
        assert parse(template, text, tools=tools, prompt=prompt) == whole, fixture.id
        for _ in range(5):
            cut = rng.randint(0, len(text))
            assert parse(template, [text[:cut], text[cut:]], tools=tools, prompt=prompt) == whole, (fixture.id, cut)


def template_of(**fields):
    return {"start_anchor": "<|assistant|>", "fields": fields}


CONTENT = {"close": "<|end|>"}


@pytest.mark.parametrize(
    ("calls", "text"),
    [
        (
            {"open_pattern": r"<call name=(?P<name>\w+)>", "close": "</call>", "content": "kv-lines"}
            | {"transform": {"function": {"name": "{name}", "arguments": "{content}"}}},
            "<call name=f>a: 1\nb: x\n</call>",
        ),
        (
            {"open": "<calls>", "close": "</calls>", "content": "json", "transform_each": True}
            | {"transform": {"function": {"name": "{tool}", "arguments": "{with}"}}},
            '<calls>[{"tool": "f", "with": {"a": 1, "b": "x"}}]</calls>',
        ),
        (
            {"open_pattern": r"@(?P<name>\w+)", "close": ";", "content": "json"}
            | {"content_args": {"unquoted_keys": True, "string_delims": [["'", "'"]]}}
            | {"transform": {"function": {"name": "{name}", "arguments": "{content}"}}},
            "@f{a: 1, b: 'x'};",
        ),
    ],
)
def test_the_ways_to_write_a_call(calls, text):
    template = template_of(content=CONTENT, tool_calls={"repeats": True, **calls})
    for pieces in ([f"Hm. {text}"], f"Hm. {text}"):
        assert parse(template, pieces) == ("Hm.", "", [("f", {"a": 1, "b": "x"})])
    assert parse(template, [text[:-1]], stopped=False)[2] == []


def test_a_malformed_call_is_content():
    calls = {"open": "<call>", "close": "</call>", "content": "json"}
    template = template_of(content=CONTENT, tool_calls=calls)
    assert parse(template, ["See: <call>{]</call>"]) == ("See:<call>{]</call>", "", [])
    assert parse(template, ["<call>{}</call>"], tools=()) == ("<call>{}</call>", "", [])


def test_the_prompt_says_where_the_output_begins():
    template = template_of(content=CONTENT, thinking={"open": "<think>", "close": "</think>"})
    assert parse(template, ["Hm.</think>Hi<|end|>"], prompt="<think>\n<|assistant|><think>\n") == ("Hi", "Hm.", [])
    assert parse(template, ["Hi<|end|>"], prompt="<|assistant|><think></think>") == ("Hi", "", [])


@pytest.mark.parametrize(
    "template",
    [
        [],
        {"fields": {}},
        {"fields": {"content": {}}},
        {"version": 9, **template_of(content={})},
        template_of(content={}, other={}),
        template_of(content={"open_pattern": "("}),
        template_of(content={"open": ""}),
        template_of(content={"content": "yaml"}),
        template_of(content={"transform": "a {content}"}),
    ],
)
def test_a_template_that_cannot_be_used_is_left_aside(template, caplog):
    format = choose_format("auto", "auto", templates={"default": "<tool_call>"}, tokens=(), response_template=template)
    assert format.template is None
    assert format.tools.name == "hermes"
    assert "response_template" in caplog.text


def test_a_named_format_comes_before_the_template():
    template = template_of(content=CONTENT)
    assert choose_format("hermes", "auto", templates={}, tokens=(), response_template=template).template is None


@pytest.mark.parametrize("family", FAMILIES.values())
def test_constraints_begin_behind_the_reasoning_that_a_template_describes(family):
    parsers = OutputParsers(
        choose_format("auto", "auto", templates={}, tokens=(), response_template=TEMPLATES[family]), {}
    )
    marks = {"qwen2": ("<think>", "</think>"), "qwen3_5": ("<think>", "</think>"), "gemma4": parsers.reasoning_marks}
    outputs = inference_pb2.StructuredOutputs(json_object=True)
    parsers.let_reason(outputs, is_call=False)
    assert (outputs.reasoning_start, outputs.reasoning_end) == parsers.reasoning_marks == marks[family]
    opening, closing = marks[family]
    reader = parsers.reasoning_reader(prompt="")
    events = reader.feed(f'{opening}\nhm{closing}{{"a": 1}}') + reader.finish(stopped=True)
    assert "".join(event.text for event in events if isinstance(event, ContentDelta)) == '{"a": 1}'
    own = inference_pb2.StructuredOutputs(json_object=True, reasoning_end="</own>")
    parsers.let_reason(own, is_call=False)
    assert (own.reasoning_start, own.reasoning_end) == ("", "</own>")


def test_reasoning_that_patterns_mark_holds_no_constraint_back():
    fields = {"thinking": {"open_pattern": "<t[0-9]>", "close": "</t>"}, "content": {}}
    template = {"start_anchor": "<a>", "fields": fields}
    parsers = OutputParsers(choose_format("auto", "auto", templates={}, tokens=(), response_template=template), {})
    outputs = inference_pb2.StructuredOutputs(json_object=True)
    parsers.let_reason(outputs, is_call=False)
    assert outputs == inference_pb2.StructuredOutputs(json_object=True)
