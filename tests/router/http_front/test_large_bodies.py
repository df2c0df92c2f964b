"""Requests that would hold up all others, or take much memory, before anything else refuses them."""

import json

import httpx2
import orjson
import pytest
from pagewire_router.http_front import body, completions
from pagewire_router.http_front.body import parse_object
from pagewire_router.http_front.errors import HttpError

MESSAGES = [{"role": "user", "content": "Hello"}]


def nested(depth):
    """An object with this many levels."""
    return orjson.loads(b'{"a":' * depth + b"1" + b"}" * depth)


async def refusal(front, path, fields):
    """The error object of an answer with status 400."""
    headers = {"content-type": "application/json"}
    async with httpx2.AsyncClient() as client:
        answer = await client.post(f"{front.base_url}{path}", content=json.dumps(fields), headers=headers, timeout=30)
    assert answer.status_code == 400, answer.text[:300]
    return answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/completions", {"prompt": ["a"] * 200, "cache_salt": "x" * 300}, "cache_salt"),
        ("/v1/completions", {"prompt": "a", "logit_bias": {str(n): 0 for n in range(1025)}}, "logit_bias"),
        ("/v1/completions", {"prompt": ["a", "b"], "request_id": "x" * 256}, "request_id"),
        ("/v1/chat/completions", {"messages": MESSAGES * 257}, "messages"),
        ("/v1/chat/completions", {"messages": MESSAGES, "tools": [{}] * 257}, "tools"),
        ("/v1/responses", {"input": MESSAGES * 257}, "input"),
        ("/tokenize", {"messages": MESSAGES * 257}, "messages"),
    ],
)
async def test_what_is_too_much_is_refused_by_name(serve_http, path, fields, param):
    async with serve_http() as front:
        assert (await refusal(front, path, fields))["param"] == param
        assert front.runner.requests == []


async def test_fields_are_not_copied_for_more_prompts_than_memory_has_room_for(serve_http, monkeypatch):
    monkeypatch.setattr(completions, "MAX_COPIED_BYTES", 10_000)
    fields = {"prompt": ["a"] * 20, "stop": ["x" * 1000]}
    async with serve_http() as front:
        error = await refusal(front, "/v1/completions", fields)
    assert error["param"] == "prompt"
    assert "holds 20 prompts; accepted with the 1," in error["message"]


def test_the_values_of_a_body_are_counted_before_they_are_parsed(monkeypatch):
    monkeypatch.setattr(body, "MAX_COMMAS", 100)
    assert parse_object(b'{"prompt":[' + b"1," * 100 + b"1]}")
    with pytest.raises(HttpError, match="more than 100 commas"):
        parse_object(b'{"prompt":[' + b"1," * 101 + b"1]}")


def test_nesting_is_bounded():
    assert parse_object(json.dumps(nested(body.MAX_DEPTH)).encode())
    with pytest.raises(HttpError, match="more than 128 deep"):
        parse_object(json.dumps(nested(body.MAX_DEPTH + 1)).encode())


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": "a", "structured_outputs": {"json": nested(300)}}),
        ("/v1/chat/completions", {"messages": [{**MESSAGES[0], "x": nested(300)}]}),
        ("/v1/chat/completions", {"messages": MESSAGES, "chat_template_kwargs": nested(300)}),
        ("/v1/responses", {"input": "a", "metadata": nested(300)}),
    ],
)
async def test_deep_nesting_is_a_fault_of_the_client(serve_http, path, fields):
    async with serve_http() as front:
        assert "deep" in (await refusal(front, path, fields))["message"]


async def test_arguments_of_calls_that_are_nested_deeply_stay_text(serve_http):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "[" * 500 + "]" * 500}}
    messages = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call]}]
    async with serve_http() as front, httpx2.AsyncClient() as client:
        answer = await client.post(f"{front.base_url}/v1/chat/completions", json={"messages": messages})
    assert answer.status_code < 500
