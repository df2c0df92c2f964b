"""Grammars for tool_choice allow every call of a format, and nothing else."""

import json

import llguidance
import pytest
from pagewire_router.parsing.choice import OutputParsers, choose_format
from pagewire_router.parsing.constraints import NotConstrainable, call_constraint
from pagewire_router.parsing.events import ToolCallArguments, ToolCallStart

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "unit": {"type": "string", "enum": ["c", "f"]},
                },
                "required": ["city", "days"],
            },
        },
    },
    {"type": "function", "function": {"name": "get_time"}},
]
WEATHER = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bern", "days": 3}}\n</tool_call>',
    "qwen3_coder": "<tool_call>\n<function=get_weather>\n<parameter=city>\nBern\n</parameter>\n<parameter=days>\n3\n"
    "</parameter>\n</function>\n</tool_call>",
    "glm45": "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Bern</arg_value>\n<arg_key>days</arg_key>\n"
    "<arg_value>3</arg_value>\n</tool_call>",
    "llama3_json": '{"name": "get_weather", "parameters": {"city": "Bern", "days": 3}}',
    "pythonic": '[get_weather(city="Bern", days=3)]',
    "mistral": '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Bern", "days": 3}}]',
    "deepseek_v31": '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Bern", "days": 3}'
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek_v32": '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" '
    'string="true">Bern</｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
    '{"city": "Bern", "days": 3}<|tool_call_end|><|tool_calls_section_end|>',
    "granite": '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Bern", "days": 3}}]',
    "cohere": '<|START_ACTION|>[{"tool_name": "get_weather", "parameters": {"city": "Bern", "days": 3}}]<|END_ACTION|>',
    "minimax_m2": '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Bern</parameter>\n'
    '<parameter name="days">3</parameter>\n</invoke>\n</minimax:tool_call>',
    "harmony": '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Bern", "days": 3}',
}
TOKENIZER = llguidance.LLTokenizer("byte")


def constraint(format, **options):
    return call_constraint(choose_format(format, "think", templates={}, tokens=()), TOOLS, {}, **options)


def accepts(outputs, text):
    """Whether the grammar allows the text as a whole. A byte is a token here."""
    matcher = llguidance.LLMatcher(TOKENIZER, json.dumps({"grammars": [{"lark_grammar": outputs.grammar}]}))
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize("format", WEATHER)
def test_a_call_is_allowed_and_read_back(format):
    text = WEATHER[format]
    assert accepts(constraint(format), text)
    parser = OutputParsers(choose_format(format, "none", templates={}, tokens=()), {}).new(tools=TOOLS)
    start, arguments, _ = parser.feed(text) + parser.finish(stopped=True)
    assert isinstance(start, ToolCallStart)
    assert isinstance(arguments, ToolCallArguments)
    assert (start.name, json.loads(arguments.text)) == ("get_weather", {"city": "Bern", "days": 3})


@pytest.mark.parametrize("format", WEATHER)
def test_nothing_else_is_allowed(format):
    text = WEATHER[format]
    outputs = constraint(format)
    assert not accepts(outputs, "It is sunny.")
    assert not accepts(outputs, text.replace("get_weather", "rm"))
    assert not accepts(outputs, text.replace("3", "soon"))
    assert not accepts(outputs, text[:-1])


def test_a_named_tool_is_the_only_one():
    text = WEATHER["hermes"]
    assert accepts(constraint("hermes", name="get_weather"), text)
    assert not accepts(constraint("hermes", name="get_time"), text)
    with pytest.raises(NotConstrainable, match="no tool has this name"):
        constraint("hermes", name="rm")


def test_several_calls_unless_one_is_asked_for():
    text = f"{WEATHER['hermes']}\n{WEATHER['hermes']}"
    assert accepts(constraint("hermes"), text)
    assert not accepts(constraint("hermes", max_calls=1), text)


def test_optional_parameters_and_plain_words():
    text = WEATHER["qwen3_coder"].replace("</function>", "<parameter=unit>\nc\n</parameter>\n</function>")
    assert accepts(constraint("qwen3_coder"), text)
    assert not accepts(constraint("qwen3_coder"), text.replace("\nc\n", "\nk\n"))


def test_special_tokens_are_named_by_id():
    format = choose_format("hermes", "none", templates={}, tokens=())
    grammar = call_constraint(format, TOOLS, {"<tool_call>": 7, "</tool_call>": 8}).grammar
    assert "<[7]>" in grammar
    assert "<[8]>" in grammar
    assert '"<tool_call>"' not in grammar


def test_what_no_grammar_describes_is_refused():
    with pytest.raises(NotConstrainable, match="gemma"):
        constraint("gemma4")
    with pytest.raises(NotConstrainable, match="--tool-call-parser"):
        constraint("none")


def test_json_has_the_whitespace_of_chat_templates():
    text = WEATHER["hermes"]
    assert not accepts(constraint("hermes"), text.replace('"days": 3', '"days":   3'))
    assert not accepts(constraint("hermes"), text.replace("</tool_call>", "\n\n\n\n</tool_call>"))


def test_a_model_whose_calls_no_grammar_describes_is_left_to_json():
    format = choose_format("gemma4", "none", templates={}, tokens=())
    assert OutputParsers(format, {}).constraint(TOOLS) is None
    format = choose_format("hermes", "none", templates={}, tokens=())
    assert accepts(OutputParsers(format, {}).constraint(TOOLS, max_calls=1), WEATHER["hermes"])


def parameters(**schema):
    """A tool with this schema of its arguments."""
    return [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", **schema}}}]


@pytest.mark.parametrize("format", ["qwen3_coder", "pythonic"])
def test_no_grammar_is_written_that_is_too_long_to_be_served(format):
    """Definitions are written for every parameter, so that a short schema can come to a long grammar."""
    properties = {f"p{index}": {"$ref": "#/$defs/a"} for index in range(100)}
    offered = parameters(properties=properties, **{"$defs": {"a": {"enum": ["x" * 10_000]}}})
    with pytest.raises(NotConstrainable, match="524,288 characters"):
        call_constraint(choose_format(format, "none", templates={}, tokens=()), offered, {})


@pytest.mark.parametrize("format", ["qwen3_coder", "pythonic", "hermes"])
@pytest.mark.parametrize("schema", [{"properties": 5}, {"properties": {"a": {"enum": 5}}, "required": [{}, 5]}])
def test_a_malformed_schema_is_for_the_compiler_to_refuse(format, schema):
    outputs = call_constraint(choose_format(format, "none", templates={}, tokens=()), parameters(**schema), {})
    assert outputs.grammar
