"""The parts of a client's conversation that reach the template, and refusals that name the field."""

import json
import time

import pytest
from google.protobuf import struct_pb2
from pagewire.v1 import inference_pb2 as pb
from pagewire_router.admission.conversation import check_num_messages, read_conversation
from pagewire_router.admission.json_text import MAX_DEPTH, JsonError, parse_json
from pagewire_router.errors import InvalidRequest

USER = pb.ChatMessage(role="user", content="Hi")


def chat(*messages, **fields):
    return pb.ChatPrompt(messages=[pb.ChatMessage(json=text) for text in messages] or [USER], **fields)


def violations(prompt):
    with pytest.raises(InvalidRequest) as caught:
        read_conversation(prompt)
    return {violation.field: violation.description for violation in caught.value.violations}


def test_messages_reach_the_template_whole_and_in_their_order():
    messages = [
        {"content": "b", "role": "user", "zeta": [1.0, 1, 2**80, None], "alpha": {"y": 1e300, "x": -0.0}},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"b": 1, "a": None}}}]},
        {"role": "tool", "tool_call_id": "1", "name": "f", "content": [{"type": "text", "text": "é", "cache": True}]},
    ]
    read = read_conversation(chat(*map(json.dumps, messages))).messages
    assert json.dumps(read) == json.dumps(messages)


def test_keys_without_a_value_are_left_out():
    message = {"role": "assistant", "content": None, "tool_calls": [{"function": None}], "name": None}
    assert read_conversation(chat(json.dumps(message))).messages == [
        {"role": "assistant", "tool_calls": [{"function": None}]}
    ]


def test_text_by_other_names_is_text():
    content = ["a", {"type": "input_text", "text": "b"}, {"type": "refusal", "refusal": "c"}, {"text": "d"}]
    (message,) = read_conversation(chat(json.dumps({"role": "user", "content": content}))).messages
    assert [part["text"] for part in message["content"]] == ["a", "b", "c", "d"]


def test_tools_and_variables_keep_order_and_types():
    tools = [{"type": "function", "function": {"z": 1.0, "a": 1}}]
    conversation = read_conversation(chat(tools_json=json.dumps(tools), template_kwargs_json='{"b": 2.0, "a": 2}'))
    assert json.dumps(conversation.tools) == json.dumps(tools)
    assert json.dumps(conversation.template_kwargs) == '{"b": 2.0, "a": 2}'
    assert read_conversation(chat(tools_json="[]")).tools == []
    assert read_conversation(chat()).tools is None


def test_structs_go_on_working():
    struct = struct_pb2.Struct()
    struct.update({"a": 1, "b": [1.5, {"c": None}]})
    conversation = read_conversation(chat(tools=[struct], template_kwargs=struct))
    assert conversation.tools == [{"a": 1, "b": [1.5, {"c": None}]}]
    assert conversation.template_kwargs == conversation.tools[0]


STRUCT = struct_pb2.Struct(fields={"a": struct_pb2.Value(number_value=1)})
DEEP = '{"a": ' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1)
BAD = {
    "no messages": (pb.ChatPrompt(), "chat.messages"),
    "no role": (pb.ChatPrompt(messages=[USER, pb.ChatMessage()]), "chat.messages[1].role"),
    "no role in JSON": (chat('{"content": "x"}'), "chat.messages[0].json.role"),
    "role of another type": (chat('{"role": 5, "content": "x"}'), "chat.messages[0].json.role"),
    "no JSON": (chat("{"), "chat.messages[0].json"),
    "no object": (chat("[]"), "chat.messages[0].json"),
    "JSON and fields": (
        pb.ChatPrompt(messages=[pb.ChatMessage(role="user", json='{"role": "user", "content": "x"}')]),
        "chat.messages[0].json",
    ),
    "NaN": (chat('{"role": "user", "content": "x", "n": NaN}'), "chat.messages[0].json"),
    "infinity": (chat('{"role": "user", "content": "x", "n": 1e999}'), "chat.messages[0].json"),
    "half a pair": (chat('{"role": "user", "content": "\\ud83d"}'), "chat.messages[0].json"),
    "half a pair in a key": (chat(template_kwargs_json='{"\\uDE00": 1}'), "chat.template_kwargs_json"),
    "NaN in a Struct": (
        chat(template_kwargs=struct_pb2.Struct(fields={"a": struct_pb2.Value(number_value=float("nan"))})),
        "chat.template_kwargs",
    ),
    "thoughts that are no text": (
        chat('{"role": "user", "content": [{"type": "thinking", "thinking": [5]}]}'),
        "chat.messages[0].json.content[0].thinking",
    ),
    "deep": (chat(tools_json=f"[{DEEP}]"), "chat.tools_json"),
    "very deep": (chat(tools_json="[" * 100_000), "chat.tools_json"),
    "a number of many digits": (chat(tools_json="[" + "9" * 100_000 + "]"), "chat.tools_json"),
    "tools that are none": (chat(tools_json='["f"]'), "chat.tools_json[0]"),
    "tools that are no list": (chat(tools_json="{}"), "chat.tools_json"),
    "tools twice": (chat(tools_json="[]", tools=[STRUCT]), "chat.tools_json"),
    "variables twice": (chat(template_kwargs_json="{}", template_kwargs=STRUCT), "chat.template_kwargs_json"),
    "variables that are no object": (chat(template_kwargs_json="[]"), "chat.template_kwargs_json"),
    "a variable with a field": (chat(template_kwargs_json='{"tools": []}'), "chat.template_kwargs_json.tools"),
    "documents": (chat(template_kwargs_json='{"documents": "x"}'), "chat.template_kwargs_json.documents"),
    "an image": (
        chat('{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}]}'),
        "chat.messages[0].json.content[1]",
    ),
    "a part without text": (
        chat('{"role": "user", "content": [{"type": "text"}]}'),
        "chat.messages[0].json.content[0].text",
    ),
    "a part that is none": (chat('{"role": "user", "content": [5]}'), "chat.messages[0].json.content[0]"),
    "content of another type": (chat('{"role": "user", "content": 5}'), "chat.messages[0].json.content"),
    "an unknown format": (chat(content_format=9), "chat.content_format"),
    "continued and begun": (
        chat(continue_final_message=True, add_generation_prompt=True),
        "chat.continue_final_message",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_served_is_refused_by_its_field(case):
    prompt, field = BAD[case]
    found = violations(prompt)
    assert list(found) == [field]
    assert len(found[field]) < 300


def test_of_many_bad_messages_some_are_named():
    prompt = pb.ChatPrompt(messages=[pb.ChatMessage()] * 1000)
    assert 1 < len(violations(prompt)) < 100
    with pytest.raises(InvalidRequest, match=r"chat\.messages: holds 1000 messages"):
        check_num_messages(prompt, 999)
    check_num_messages(prompt, 1000)


def test_brackets_within_strings_are_no_nesting():
    value = {"a": "[" * 1000 + '\\"' + "{" * 1000, "b": [[]] * 500}
    assert parse_json(json.dumps(value)) == value
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    with pytest.raises(JsonError, match="deep"):
        parse_json("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
    assert parse_json('"\\ud83d\\ude00"') == "😀"


def test_reading_takes_no_longer_for_a_string_without_an_end():
    text = "[" + "[]," * MAX_DEPTH + '"' + '\\"' * 60_000
    began_s = time.monotonic()
    with pytest.raises(JsonError, match="Unterminated string"):
        parse_json(text)
    assert time.monotonic() - began_s < 2, "the time grows with the square of the length"
