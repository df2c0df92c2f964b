"""Content, reasoning and tool calls are told apart, in every format and wherever the stream is cut."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pagewire_router.parsing.choice import OutputParsers, UnknownFormat, choose_format
from pagewire_router.parsing.events import (
    ContentDelta,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from pagewire_router.parsing.formats import REASONING_FORMATS, TOOL_FORMATS


def tool(name, **properties):
    return {"type": "function", "function": {"name": name, "parameters": {"properties": properties}}}


TOOLS = [
    tool("get_weather", city={"type": "string"}, days={"type": "integer"}, exact={"type": ["boolean", "null"]}),
    tool("get_time"),
    tool("write", text={"type": "string"}, options={"$ref": "#/$defs/options"}),
]
TOOLS[2]["function"]["parameters"]["$defs"] = {"options": {"type": "object"}}
WEATHER = ("get_weather", {"city": "Zürich", "days": 3})


def parser_of(tools="none", reasoning="none", *, offered=TOOLS, prompt="", special=()):
    format = choose_format(tools, reasoning, templates={}, tokens=())
    return OutputParsers(format, {text: index for index, text in enumerate(special)}).new(tools=offered, prompt=prompt)


def joined(events):
    """(content, reasoning, calls) of a list of events, which must be in order."""
    content, reasoning, calls, open_calls = "", "", [], []
    for event in events:
        match event:
            case ContentDelta(text):
                content += text
            case ReasoningDelta(text):
                reasoning += text
            case ToolCallStart(index, call_id, name):
                assert index == len(calls)
                assert call_id
                calls.append([name, ""])
                open_calls.append(index)
            case ToolCallArguments(index, text):
                assert index in open_calls
                calls[index][1] += text
            case ToolCallEnd(index):
                open_calls.remove(index)
    assert not open_calls
    return content, reasoning, [(name, json.loads(arguments)) for name, arguments in calls]


def parse(pieces, *, stopped=False, **of_parser):
    parser = parser_of(**of_parser)
    events = [event for piece in pieces for event in parser.feed(piece)]
    return joined(events + parser.finish(stopped=stopped))


CALLS = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich", "days": 3}}\n</tool_call>',
    "qwen3_coder": "<tool_call>\n<function=get_weather>\n<parameter=city>\nZürich\n</parameter>\n<parameter=days>\n3\n"
    "</parameter>\n</function>\n</tool_call>",
    "seed_oss": "<seed:tool_call><function=get_weather><parameter=city>Zürich</parameter><parameter=days>3</parameter>"
    "</function></seed:tool_call>",
    "glm45": "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Zürich</arg_value>\n<arg_key>days</arg_key>\n"
    "<arg_value>3</arg_value>\n</tool_call>",
    "llama3_json": '{"name": "get_weather", "parameters": {"city": "Zürich", "days": 3}}',
    "pythonic": "[get_weather(city='Zürich', days=3)]",
    "olmo3": '<function_calls>\nget_weather(city="Zürich", days=3)\n</function_calls>',
    "mistral": '[TOOL_CALLS]get_weather[ARGS]{"city": "Zürich", "days": 3}',
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
    '{"city": "Zürich", "days": 3}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "deepseek_v31": '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Zürich", "days": 3}'
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek_v32": '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" '
    'string="true">Zürich</｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
    '{"city": "Zürich", "days": 3}<|tool_call_end|><|tool_calls_section_end|>',
    "kimi_k3": '<|open|>tools<|sep|><|open|>call tool="get_weather" index="1"<|sep|><|open|>argument key="city" '
    'type="string"<|sep|>Zürich<|close|>argument<|sep|><|open|>argument key="days" type="number"<|sep|>3<|close|>'
    "argument<|sep|><|close|>call<|sep|><|close|>tools<|sep|>",
    "gemma4": '<|tool_call>call:get_weather{city:<|"|>Zürich<|"|>,days:3}<tool_call|>',
    "granite": '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Zürich", "days": 3}}]',
    "phi4_mini_json": '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Zürich", "days": 3}}]'
    "<|/tool_call|>",
    "cohere": '<|START_ACTION|>[\n{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "Zürich", '
    '"days": 3}}\n]<|END_ACTION|>',
    "minimax_m2": '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Zürich</parameter>\n'
    '<parameter name="days">3</parameter>\n</invoke>\n</minimax:tool_call>',
    "internlm": '<|action_start|><|plugin|>\n{"name": "get_weather", "parameters": {"city": "Zürich", "days": 3}}'
    "<|action_end|>",
    "jamba": '<tool_calls>[{"name": "get_weather", "arguments": {"city": "Zürich", "days": 3}}]</tool_calls>',
    "xlam": '[{"name": "get_weather", "arguments": {"city": "Zürich", "days": 3}}]',
    "harmony": "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
    '{"city": "Zürich", "days": 3}',
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_read_in_each_format_at_every_cut(name):
    text = CALLS[name]
    expected = ("", "", [WEATHER])
    assert parse([text], tools=name) == expected
    assert parse(text, tools=name) == expected
    for cut in range(1, len(text)):
        assert parse([text[:cut], text[cut:]], tools=name) == expected


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_cut_off_is_never_reported(name):
    text = CALLS[name]
    # Behind the arguments only marks follow; some formats have none.
    for end in range(text.index("3")):
        assert parse([text[:end]], tools=name)[2] == []


@pytest.mark.parametrize("name", CALLS)
def test_text_that_looks_like_a_call_is_content_if_no_tools_are_offered(name):
    content, _, calls = parse([CALLS[name]], tools=name, offered=())
    assert not calls
    assert "Zürich" in content or name == "harmony"


def test_every_format_has_a_case():
    covered = {"deepseek_v4": "deepseek_v32", "deepseek_v41": "deepseek_v32"}
    assert {covered.get(format.name, format.name) for format in TOOL_FORMATS} | {"harmony"} == set(CALLS)


@pytest.mark.parametrize("format", REASONING_FORMATS, ids=lambda format: format.name)
def test_reasoning_is_told_from_content(format):
    text = f"{format.opening}Two cities.{format.closings[0]}Here you are."
    for pieces in ([text], text):
        assert parse(pieces, reasoning=format.name) == ("Here you are.", "Two cities.", [])


def test_reasoning_may_begin_in_the_prompt():
    pieces = ["Hm.\n</think>\n\n", "Hello"]
    assert parse(pieces, reasoning="qwen3", prompt="<|im_start|>assistant\n<think>\n") == ("Hello", "Hm.", [])
    assert parse(["Hello"], reasoning="qwen3", prompt="assistant\n<think>\n\n</think>\n\n") == ("Hello", "", [])


def test_reasoning_is_not_opened_behind_content():
    assert parse(["Write <think> to think."], reasoning="think") == ("Write <think> to think.", "", [])


def test_a_call_within_reasoning_ends_it():
    text = f"I look it up.\n{CALLS['hermes']}"
    assert parse([text], tools="hermes", reasoning="think", prompt="<think>") == ("", "I look it up.", [WEATHER])


def test_content_around_calls_is_kept():
    pieces = [f"One moment.\n\n{CALLS['hermes']}\n{CALLS['hermes']} There."]
    assert parse(pieces, tools="hermes") == ("One moment. There.", "", [WEATHER, WEATHER])


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("hermes", "<tool_call>not JSON</tool_call>"),
        ("hermes", "The tag <tool_call> begins a call, </tool_call> ends it."),
        ("hermes", '<tool_call>{"name": 1, "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1e999}}</tool_call>'),
        ("hermes", "<tool_call>" + "[" * 100_000),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}</tool_call>"),
        ("llama3_json", '{"capital": "Bern"}'),
        ("llama3_json", '{"name": "Ada", "parameters": {}}'),
        ("llama3_json", '{"a": 1} is a dictionary'),
        ("pythonic", "[1, 2, 3]"),
        ("pythonic", "[get_weather(*cities)]"),
        ("pythonic", "[get_weather(city=open('/etc/passwd'))]"),
        ("pythonic", "[get_weather(days=1e999)]"),
        ("mistral", "[TOOL_CALLS] no call"),
        ("glm45", "<tool_call>this is no call</tool_call>"),
        ("gemma4", "<|tool_call>call:f no brace<tool_call|>"),
        ("qwen3_coder", "<tool_call>\n<function=f>\ntext\n</function>\n</tool_call>"),
        ("deepseek_v31", "<｜tool▁calls▁begin｜>get_time<｜tool▁calls▁end｜>"),
    ],
)
def test_what_is_malformed_is_content(format, text):
    assert parse([text], tools=format) == (text, "", [])
    assert parse(text[:2000], tools=format) == parse([text[:2000]], tools=format)


def test_a_call_without_its_end_counts_if_the_model_stopped_there():
    text = CALLS["hermes"].removesuffix("\n</tool_call>")
    assert parse([text], tools="hermes", stopped=True) == ("", "", [WEATHER])
    assert parse([text], tools="hermes", stopped=False) == ("", "", [])
    assert parse([text[:-1]], tools="hermes", stopped=True) == ("", "", [])


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("city", "3", "3"),
        ("city", " two  words ", " two  words "),
        ("days", "3", 3),
        ("days", "3.0", 3),
        ("days", "1_000", "1_000"),
        ("days", "soon", "soon"),
        ("exact", "True", True),
        ("exact", "null", None),
        ("unknown", "3", "3"),
        ("options", '{"a": [1]}', {"a": [1]}),
        ("options", "{'a': True}", {"a": True}),
        ("options", "{'a': nan}", "{'a': nan}"),
        ("text", "<b>&amp;</b></parameter> and </function>", "<b>&amp;</b></parameter> and </function>"),
    ],
)
def test_plain_values_are_typed_by_the_schema(key, text, value):
    name = "get_weather" if key in ("city", "days", "exact") else "write"
    call = f"<tool_call>\n<function={name}>\n<parameter={key}>\n{text}\n</parameter>\n</function>\n</tool_call>"
    assert parse([call], tools="qwen3_coder") == ("", "", [(name, {key: value})])


@pytest.mark.parametrize("depth", [50, 400, 900, 5000, 200_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_values_may_be_nested_as_deep_as_they_like(depth, opening, closing):
    text = opening * depth + "1" + closing * depth
    call = f"<tool_call><function=write><parameter=options>{text}</parameter></function></tool_call>"
    offered = [tool("write", options={"type": ["array", "object"]})]
    ((name, arguments),) = parse([call], tools="qwen3_coder", offered=offered)[2]
    assert name == "write"
    assert isinstance(arguments["options"], str) == (depth > 100)
    marked = f'<tool_call>{{"name": "write", "arguments": {{"options": {text}}}}}</tool_call>'
    assert len(parse([marked], tools="hermes")[2]) == (depth < 100)


def test_special_tokens_are_hidden_but_not_those_that_mark_calls():
    text = f"<|im_start|>Hello<|im_end|>{CALLS['mistral']}<|im_end|>"
    special = ("<|im_start|>", "<|im_end|>", "[TOOL_CALLS]", "[ARGS]")
    assert parse([text], tools="mistral", special=special) == ("Hello", "", [WEATHER])
    assert parse(text, tools="mistral", special=special) == ("Hello", "", [WEATHER])


def test_half_a_surrogate_pair_in_arguments_stays_escaped():
    parser = parser_of("hermes")
    events = parser.feed('<tool_call>{"name": "get_time", "arguments": {"a": "\\ud800"}}</tool_call>')
    assert events[1] == ToolCallArguments(0, '{"a": "\\ud800"}')


def test_text_is_passed_on_at_once():
    parser = parser_of("hermes", "think")
    assert parser.feed("Hello") == [ContentDelta("Hello")]
    assert parser.feed(" <") == []
    assert parser.feed("b>") == [ContentDelta(" <b>")]


def test_the_ids_of_calls_are_the_model_s_if_it_gives_any():
    (start, *_) = parser_of("kimi_k2").feed(CALLS["kimi_k2"])
    assert start.id == "functions.get_weather:0"
    starts = [parser_of("hermes").feed(CALLS["hermes"])[0].id for _ in range(2)]
    assert starts[0] != starts[1]


PIECES = st.lists(
    st.sampled_from(
        [
            *"<>{}[]\"':,=\\ \n",
            *("a", "3", "<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<function=write>"),
            *("<parameter=text>", "</parameter>", "</function>", '{"name": "write", "arguments": {', '"a": 1'),
            *("get_time", "[get_time(", ")]", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "analysis"),
            *("<|channel|>", "<|message|>", "<|end|>", "<|start|>", " to=functions.write", "<|call|>", "<|eot_id|>"),
            *("<|tool_call>call:write", '<|"|>', "<tool_call|>", "<|tool_calls_section_begin|>"),
            *("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
            *("<|tool_calls_section_end|>",),
        ]
    ),
    max_size=25,
)


@given(
    pieces=PIECES,
    tools=st.sampled_from([*(format.name for format in TOOL_FORMATS), "harmony"]),
    cuts=st.lists(st.integers(0, 300), max_size=6),
    prompt=st.sampled_from(["", "<think>"]),
)
def test_no_text_raises_and_no_cut_matters(pieces, tools, cuts, prompt):
    text = "".join(pieces)
    reasoning = "gemma4" if tools == "gemma4" else "think"
    whole = parse([text], tools=tools, reasoning=reasoning, prompt=prompt)
    assert parse(text, tools=tools, reasoning=reasoning, prompt=prompt) == whole
    ends = sorted({0, *(min(cut, len(text)) for cut in cuts), len(text)})
    parts = [text[start:end] for start, end in pairwise(ends)]
    assert parse(parts, tools=tools, reasoning=reasoning, prompt=prompt) == whole


@pytest.mark.parametrize(
    ("template", "tokens", "tools", "reasoning"),
    [
        ("{{ '<tool_call>' }} ... <think> </think>", (), "hermes", "think"),
        ("<tool_call>\n<function=a>\n<parameter=b>", ("<think>", "</think>"), "qwen3_coder", "think"),
        ("<tool_call>{{ name }}<arg_key>", ("<think>", "</think>"), "glm45", "think"),
        ("[TOOL_CALLS]", ("[THINK]", "[/THINK]"), "mistral", "mistral"),
        ("ipython", ("<|python_tag|>",), "llama3_json", None),
        ("plain", ("<|endoftext|>",), None, None),
    ],
)
def test_the_format_is_told_by_template_and_tokens(template, tokens, tools, reasoning):
    format = choose_format("auto", "auto", templates={"default": template}, tokens=tokens)
    assert (format.tools and format.tools.name) == tools
    assert (format.reasoning and format.reasoning.name) == reasoning
    assert bool(format) == bool(tools or reasoning)


def test_harmony_is_told_by_its_tokens():
    tokens = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>")
    assert choose_format("auto", "auto", templates={}, tokens=tokens).is_harmony
    assert not choose_format("none", "none", templates={}, tokens=tokens).is_harmony
    assert choose_format("openai", "openai_gptoss", templates={}, tokens=()).is_harmony


@pytest.mark.parametrize("name", ["qwen3_xml", "qwen3-coder", "llama4_pythonic", "glm47", "kimi"])
def test_vllm_s_names_are_known(name):
    assert choose_format(name, "deepseek_r1", templates={}, tokens=()).tools is not None


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(UnknownFormat, match=r'no tool-call parser is called "gpt5"; there are auto, .*hermes'):
        choose_format("gpt5", "none", templates={}, tokens=())


def test_a_schema_that_refers_to_itself_is_read_once():
    one = {"$ref": "#/properties/a"}
    schema = {"anyOf": [*[one] * 16, {"$ref": "#"}, {"$ref": "#/properties/b"}]}
    call = "<tool_call>\n<function=f>\n<parameter=a>\n3\n</parameter>\n</function>\n</tool_call>"
    offered = [tool("f", a=schema, b={"type": "integer"})]
    assert parse([call], tools="qwen3_coder", offered=offered) == ("", "", [("f", {"a": 3})])


def test_no_more_of_a_schema_is_read_than_one_value_is_worth():
    seen = []

    class Counted(dict):
        def get(self, key, default=None):
            seen.append(key)
            return super().get(key, default)

    schema = Counted(anyOf=[])
    for _ in range(40):
        schema = Counted(anyOf=[schema] * 40)
    call = "<tool_call>\n<function=f>\n<parameter=a>\n3\n</parameter>\n</function>\n</tool_call>"
    assert parse([call], tools="qwen3_coder", offered=[tool("f", a=schema)])[2] == [("f", {"a": "3"})]
    assert len(seen) < 10_000


@pytest.mark.parametrize(
    "schema", [5, {"type": 5}, {"type": {"a": 1}}, {"enum": 5}, {"anyOf": 5}, {"allOf": "ab"}, {"$ref": 5}]
)
def test_what_is_malformed_in_a_schema_says_nothing(schema):
    call = "<tool_call>\n<function=f>\n<parameter=a>\n3\n</parameter>\n</function>\n</tool_call>"
    assert parse([call], tools="qwen3_coder", offered=[tool("f", a=schema)])[2] == [("f", {"a": "3"})]
    bare = {"type": "function", "function": {"name": "f", "parameters": schema}}
    assert parse([call], tools="qwen3_coder", offered=[bare])[2] == [("f", {"a": "3"})]
