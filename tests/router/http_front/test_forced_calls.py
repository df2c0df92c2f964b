"""A call that must be made is made in the model's own format if a grammar can hold the model to it, or else as JSON."""

import json

import pytest
from pagewire.v1 import inference_pb2
from pagewire_router.http_front.turns import REQUIRED, Turn
from pagewire_router.parsing.choice import OutputParsers, choose_format
from pagewire_router.parsing.events import ToolCallArguments, ToolCallStart

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
    events = [*reader.feed(text), *reader.finish(stopped=True)]
    names = [event.name for event in events if isinstance(event, ToolCallStart)]
    arguments = "".join(event.text for event in events if isinstance(event, ToolCallArguments))
    return names, json.loads(arguments)


@pytest.mark.parametrize("tool_choice", [REQUIRED, "weather"])
def test_the_model_s_own_format_is_held_to(tool_choice):
    outputs, reader = forced(parsers_of("hermes"), tool_choice)
    assert "<tool_call>" in outputs.grammar
    assert calls_of(reader, MARKED) == (["weather"], {"city": "Paris"})


@pytest.mark.parametrize(
    "parsers", [None, parsers_of("gemma4"), parsers_of("hermes", "think")], ids=["no", "no", "may"]
)
def test_json_is_held_to_otherwise(parsers):
    outputs, reader = forced(parsers)
    assert json.loads(outputs.json)["minItems"] == 1
    assert calls_of(reader, '[{"name": "weather", "parameters": {"city": "Paris"}}]') == (
        ["weather"],
        {"city": "Paris"},
    )
