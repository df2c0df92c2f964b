"""/v1/responses, by OpenAI's client."""

import json

import openai
import pytest
from pagewire_router.errors import StepFailed
from pagewire_router.text.tokenizer import Tokenizer

TOOL = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
PARSERS = {"tool_call_parser": "hermes", "reasoning_parser": "qwen3"}
ASK = {"model": "tiny", "input": "Hello", "max_output_tokens": 200}


async def test_a_response_has_text_status_and_counts(saying):
    async with saying("Paris it is.") as front:
        client = front.openai()
        answer = await client.responses.create(**ASK, instructions="Be brief.", store=False, temperature=0.5)
        assert answer.output_text == "Paris it is."
        assert (answer.status, answer.store, answer.temperature) == ("completed", False, 0.5)
        assert answer.usage.input_tokens_details.cached_tokens == 3
        assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
        (request,) = front.runner.requests
        prompt = Tokenizer(front.runner.files, 500).decode(request.prompt_token_ids, skip_special_tokens=False)
        assert prompt == "<s><|system|>Be brief.</s><|user|>Hello</s><|assistant|>"
        cut = await client.responses.create(**{**ASK, "max_output_tokens": 1})
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")


async def test_a_stream_tells_every_item_and_part(saying):
    async with saying(f"<think>They ask.</think>Let me see.{CALL}", **PARSERS) as front:
        client = front.openai()
        whole = await client.responses.create(**ASK, tools=[TOOL])
        events = [event async for event in await client.responses.create(**ASK, tools=[TOOL], stream=True)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == 3
    for response in (whole, events[-1].response):
        reasoning, message, call = response.output
        assert (reasoning.type, reasoning.content[0].text) == ("reasoning", "They ask.")
        assert (message.type, message.role, message.content[0].text.strip()) == ("message", "assistant", "Let me see.")
        assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"city": "Paris"})
    told = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert told == whole.output_text
    arguments = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert json.loads("".join(arguments)) == {"city": "Paris"}


async def test_the_items_of_a_conversation_are_its_messages(saying):
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
        {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Looking."}]},
        {"type": "function_call", "call_id": "c", "name": "weather", "arguments": '{"city": "Rome"}'},
        {"type": "function_call_output", "call_id": "c", "output": "sunny"},
        {"type": "message", "role": "user", "content": "And?"},
    ]
    async with saying("ok") as front:
        await front.openai().responses.create(**{**ASK, "input": items}, tools=[TOOL])
        (request,) = front.runner.requests
    prompt = Tokenizer(front.runner.files, 500).decode(request.prompt_token_ids, skip_special_tokens=False)
    assert prompt == ("<s><|user|>Hello</s><|assistant|>Looking.</s><|tool|>sunny</s><|user|>And?</s><|assistant|>")


async def test_log_probabilities_of_each_token(saying):
    async with saying("Paris") as front:
        answer = await front.openai().responses.create(**ASK, include=["message.output_text.logprobs"], top_logprobs=1)
    entries = answer.output[0].content[0].logprobs
    assert "".join(entry.token for entry in entries).startswith("Paris")
    assert {entry.logprob for entry in entries} == {-0.5}


async def test_what_is_wrong_or_not_served_is_refused_by_name(saying):
    refused = {
        "store": True,
        "background": True,
        "previous_response_id": "resp_1",
        "conversation": "c",
        "truncation": "auto",
        "include[0]": ["file_search_call.results"],
        "tools[0].type": [{"type": "web_search"}],
        "tool_choice": "required",
        "input[0].type": [{"type": "item_reference", "id": "x"}],
        "input[0].content[0]": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}],
        "max_output_tokens": 0,
        "n": 2,
        "max_tokens": 5,
        "response_format": {"type": "json_object"},
        "guided_json": {},
        "text.format": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}},
    }
    async with saying("ok") as front:
        for name, value in refused.items():
            field = name.partition("[")[0].partition(".")[0]
            with pytest.raises(openai.BadRequestError) as error:
                await front.openai().responses.create(model="tiny", input="Hello", extra_body={field: value})
            assert error.value.param == name


async def test_a_request_that_fails_amid_its_stream_says_so(serve_http):
    async with serve_http(step_s=0.02, script=lambda r: [40] * 200) as front:
        stream = await front.openai().responses.create(**ASK, stream=True)
        for _ in range(3):
            await anext(stream)
        front.runner.requests[0].sink.on_failed(StepFailed("the step failed"))
        last = [event async for event in stream][-1]
    assert last.type == "response.failed"
    assert (last.response.error.code, last.response.error.message) == ("step_failed", "the step failed")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "schema": 5}}}, "text.format.schema"),
        ({"input": [{"type": "reasoning", "content": 5}]}, "input[0].content"),
    ],
)
async def test_the_field_that_is_wrong_is_named(serve_http, fields, param):
    async with serve_http() as front:
        with pytest.raises(openai.BadRequestError) as refused:
            await front.openai().responses.create(**{"model": "tiny", "input": "Hello", **fields})
    assert refused.value.param == param
