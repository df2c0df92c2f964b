"""Streams that have nothing to tell show signs of life, which clients skip."""

import asyncio

import httpx2
import pytest
from pagewire_router.http_front import event_stream

MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def waits_long(serve_http, monkeypatch):
    """A model whose first token comes after a while."""
    monkeypatch.setattr(event_stream, "KEEP_ALIVE_S", 0.02)
    return lambda step_s=0.15: serve_http(step_s=step_s)


async def test_openais_clients_skip_comments(waits_long):
    async with waits_long() as front:
        client = front.openai()
        stream = await client.completions.create(model="tiny", prompt="Hello", max_tokens=2, stream=True)
        assert [chunk.choices[0].finish_reason async for chunk in stream] == [None, "length"]
        chat = await client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2, stream=True)
        assert [chunk.choices[0].finish_reason async for chunk in chat] == [None, "length"]
        events = await client.responses.create(model="tiny", input="Hello", max_output_tokens=16, stream=True)
        assert (await anext(events)).type == "response.created"
        await events.close()


async def test_anthropics_clients_skip_pings(waits_long):
    async with waits_long() as front:
        fields = {"model": "tiny", "max_tokens": 2, "messages": MESSAGES}
        async with front.anthropic().messages.stream(**fields) as stream:
            message = await stream.get_final_message()
        assert message.usage.output_tokens == 2


@pytest.mark.parametrize(
    ("path", "fields", "sign"),
    [
        ("/v1/completions", {"prompt": "Hello"}, ": keep-alive\n\n"),
        ("/v1/messages", {"messages": MESSAGES}, 'event: ping\ndata: {"type":"ping"}\n\n'),
    ],
)
async def test_signs_of_life_come_while_there_is_nothing_else(waits_long, path, fields, sign, monkeypatch):
    async with waits_long() as front, httpx2.AsyncClient() as http:
        body = {**fields, "max_tokens": 2, "stream": True}
        told = (await http.post(f"{front.base_url}{path}", json=body)).text
        assert told.count(sign) in range(2, 30)
        monkeypatch.setattr(event_stream, "KEEP_ALIVE_S", 30)
        told = (await http.post(f"{front.base_url}{path}", json=body)).text
        assert sign not in told


async def test_a_client_that_leaves_while_there_is_nothing_to_tell_is_noticed(waits_long):
    async with waits_long(30) as front, httpx2.AsyncClient() as http:
        body = {"prompt": "Hello", "max_tokens": 2, "stream": True}
        async with http.stream("POST", f"{front.base_url}/v1/completions", json=body) as answer:
            assert await anext(answer.aiter_text()) == ": keep-alive\n\n"
        async with asyncio.timeout(10):
            while front.runner.tasks:
                await asyncio.sleep(0.01)
