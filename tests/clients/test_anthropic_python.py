"""Anthropic's client for Python: messages, streams, tools, token counts, exceptions, and what closing a stream does."""

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import pytest
from cluster import eventually
from http_clients import KEY, MODEL, Server
from pydantic import BaseModel

QUESTION = "How many months are in a year?"
ANSWER = "There are twelve months in a year."
ASK: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 100,
    "messages": [{"role": "user", "content": QUESTION}],
    "extra_body": {"temperature": 0},
}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL: Any = {"name": "weather", "description": "Tells the weather.", "input_schema": SCHEMA}
NAMED: Any = {"type": "tool", "name": "weather"}
ANY: Any = {"type": "any", "disable_parallel_tool_use": True}
ENDLESS: dict[str, Any] = {
    **ASK,
    "max_tokens": 2000,
    "tools": [
        {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"pattern": "^a{9000}$"}}}}
    ],
    "tool_choice": NAMED,
}


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def keyed(guarded: Server) -> Iterator[anthropic.Anthropic]:
    """Of the server that wants a key and reads calls."""
    with anthropic.Anthropic(base_url=guarded.url, api_key=KEY, max_retries=0) as client:
        yield client


def test_a_message_and_its_stream_say_the_same_and_count_the_same(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**ASK)
    assert [block.text for block in message.content] == [ANSWER]
    assert message.stop_reason == "end_turn"
    with client.messages.stream(**ASK) as stream:
        texts = list(stream.text_stream)
        streamed = stream.get_final_message()
    assert "".join(texts) == streamed.content[0].text == ANSWER
    assert len(texts) > 3
    assert streamed.usage.output_tokens == message.usage.output_tokens
    counted = client.messages.count_tokens(model=MODEL, messages=ASK["messages"])
    for usage in (message.usage, streamed.usage):
        assert usage.input_tokens + usage.cache_read_input_tokens == counted.input_tokens
    raw = [event.type for event in client.messages.create(**ASK, stream=True)]
    assert (raw[0], raw[-1]) == ("message_start", "message_stop")
    stopped = client.messages.create(**ASK, system="Be brief.", stop_sequences=[" a"])
    assert stopped.stop_reason in ("stop_sequence", "end_turn")


@pytest.mark.parametrize("choice", [NAMED, ANY], ids=["tool", "any"])
@pytest.mark.parametrize("name", ["client", "keyed"], ids=["json", "hermes"])
def test_tools_that_must_be_used(name: str, choice: Any, request: pytest.FixtureRequest) -> None:
    """As JSON for a model without a format of its own, and in the format of Hermes."""
    client: anthropic.Anthropic = request.getfixturevalue(name)
    whole = client.messages.create(**ASK, tools=[TOOL], tool_choice=choice)
    with client.messages.stream(**ASK, tools=[TOOL], tool_choice=choice) as stream:
        streamed = stream.get_final_message()
    for message in (whole, streamed):
        (block,) = message.content
        assert (block.type, block.name, message.stop_reason) == ("tool_use", "weather", "tool_use")
        assert block.input.keys() == {"city", "days"}
    result = {"type": "tool_result", "tool_use_id": whole.content[0].id, "content": "sunny"}
    messages = [
        *ASK["messages"],
        {"role": "assistant", "content": whole.content},
        {"role": "user", "content": [result]},
    ]
    assert client.messages.create(**{**ASK, "messages": messages}, tools=[TOOL]).content


def test_the_input_of_a_tool_that_was_cut_off_is_an_object(client: anthropic.Anthropic) -> None:
    cut = client.messages.create(**{**ASK, "max_tokens": 3}, tools=[TOOL], tool_choice=NAMED)
    with client.messages.stream(**{**ASK, "max_tokens": 3}, tools=[TOOL], tool_choice=NAMED) as stream:
        streamed = stream.get_final_message()
    for message in (cut, streamed):
        assert message.stop_reason == "max_tokens"
        assert message.content[0].input == {}


def test_a_tool_runner_calls_a_function_and_goes_on(client: anthropic.Anthropic) -> None:
    called = []

    @anthropic.beta_tool
    def weather(city: Literal["Rome", "Oslo"]) -> str:
        """Tells the weather."""
        called.append(city)
        return "sunny"

    runner = client.beta.messages.tool_runner(**ASK, tools=[weather], tool_choice=NAMED, max_iterations=2)
    messages = list(runner)
    assert [message.stop_reason for message in messages] == ["tool_use", "tool_use"]
    assert called[0] in ("Rome", "Oslo")
    counted = [message.usage.input_tokens + message.usage.cache_read_input_tokens for message in messages]
    assert counted[1] > counted[0], "the second request has the whole conversation"


def test_an_output_keeps_to_a_schema(client: anthropic.Anthropic) -> None:
    class Animal(BaseModel):
        kind: Literal["cat", "dog"]

    with pytest.raises(anthropic.BadRequestError, match="output_config.format"):
        client.messages.create(**ASK, output_config={"format": {"type": "xml"}})  # type: ignore[typeddict-item]
    message = client.messages.create(
        **{**ASK, "max_tokens": 4},
        output_config={"format": {"type": "json_schema", "schema": Animal.model_json_schema()}},
    )
    assert message.content[0].text.startswith("{")
    parsed = client.messages.parse(**ASK, output_format=Animal)
    assert parsed.parsed_output is not None
    assert parsed.parsed_output.kind in ("cat", "dog")
    with client.messages.stream(**ASK, output_format=Animal) as stream:
        assert stream.get_final_message().parsed_output == parsed.parsed_output


def test_errors_are_the_exceptions_that_clients_expect(client: anthropic.Anthropic, keyed: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        client.messages.create(**{**ASK, "extra_body": {"temperature": 9}})
    with pytest.raises(anthropic.NotFoundError, match="'claude' is not served here"):
        client.messages.create(**{**ASK, "model": "claude"})
    with pytest.raises(anthropic.AuthenticationError):
        keyed.with_options(api_key="another").messages.create(**ASK)
    assert keyed.with_options(api_key=None, auth_token=KEY).messages.create(**ASK).content
    with pytest.raises(anthropic.RequestTooLargeError):
        keyed.messages.create(**{**ASK, "system": "a" * 200_000})


def test_closing_a_stream_frees_its_request(client: anthropic.Anthropic, server: Server) -> None:
    num_aborted = server.num_aborted
    with client.messages.stream(**ENDLESS) as stream:
        next(event for event in stream if event.type == "input_json")
        assert server.num_running == 1
    server.check_a_request_is_freed(num_aborted)


async def test_the_asynchronous_client(server: Server) -> None:
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        messages = await asyncio.gather(*(client.messages.create(**ASK) for _ in range(8)))
        assert {message.content[0].text for message in messages} == {ANSWER}
        async with client.messages.stream(**ASK) as stream:
            assert "".join([text async for text in stream.text_stream]) == ANSWER
        num_aborted = server.num_aborted
        task = asyncio.create_task(client.messages.create(**ENDLESS))
        await asyncio.to_thread(eventually, lambda: server.num_running == 1, "the request runs")
        task.cancel()
        await asyncio.to_thread(server.check_a_request_is_freed, num_aborted)
