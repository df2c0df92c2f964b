"""A call that must be made is made in the model's own format if a grammar can hold the model to it, or else as JSON."""

import json

import pytest
from pagewire.v1 import inference_pb2
from pagewire_router.http_front.turns import REQUIRED, Turn
from pagewire_router.parsing.choice import OutputParsers, choose_format
from pagewire_router.parsing.events import ContentDelta, ReasoningDelta, ToolCallArguments, ToolCallStart

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
MARKED = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'


def forced(parsers, tool_choice=REQUIRED):
    """(what constrains the output, the reader of the output) of a turn that must call a tool."""
    turn = Turn([{"role": "user", "content": "Hello"}], tools=[TOOL], tool_choice=tool_choice)
    request = inference_pb2.GenerateRequest()
    turn.fill(request, inference_pb2.Model(), parsers)
    params = request.sampling_params
    return params.structured_outputs, turn.reader(parsers, inference_pb2.Started(prompt_text="Hello"))


def parsers_of(tools, reasoning="none"):
    return OutputParsers(choose_format(tools, reasoning, templates={}, tokens=()), {})


def calls_of(reader, text):
    events = [*reader.feed(text, ()), *reader.finish(stopped=True)]
    names = [event.name for event in events if isinstance(event, ToolCallStart)]
    arguments = "".join(event.text for event in events if isinstance(event, ToolCallArguments))
    return names, json.loads(arguments)


@pytest.mark.parametrize("tool_choice", [REQUIRED, "weather"])
def test_the_model_s_own_format_is_held_to(tool_choice):
    outputs, reader = forced(parsers_of("hermes"), tool_choice)
    assert "<tool_call>" in outputs.grammar
    assert calls_of(reader, MARKED) == (["weather"], {"city": "Paris"})


@pytest.mark.parametrize("parsers", [None, parsers_of("gemma4")], ids=["no", "no grammar of"])
def test_json_is_held_to_otherwise(parsers):
    outputs, reader = forced(parsers)
    assert json.loads(outputs.json)["minItems"] == 1
    assert not outputs.HasField("reasoning_end")
    assert calls_of(reader, '[{"name": "weather", "parameters": {"city": "Paris"}}]') == (
        ["weather"],
        {"city": "Paris"},
    )


@pytest.mark.parametrize(
    ("tools", "call"),
    [("hermes", MARKED), ("none", '[{"name": "weather", "parameters": {"city": "Paris"}}]')],
)
def test_the_call_may_stand_behind_reasoning(tools, call):
    outputs, reader = forced(parsers_of(tools, "think"))
    assert (outputs.reasoning_start, outputs.reasoning_end) == ("<think>", "</think>")
    events = [*reader.feed("<think>They ask.</thi", ()), *reader.feed(f"nk>{call}", ()), *reader.finish(stopped=True)]
    assert "".join(event.text for event in events if isinstance(event, ReasoningDelta)) == "They ask."
    assert [event.name for event in events if isinstance(event, ToolCallStart)] == ["weather"]
    assert not any(isinstance(event, ContentDelta) for event in events)
