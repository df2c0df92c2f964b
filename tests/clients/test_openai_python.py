"""OpenAI's client for Python: its methods, its helpers, its exceptions, and what closing a stream does."""

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from cluster import eventually, free_port, start_router
from http_clients import KEY, MODEL, Server, marked_call
from pydantic import BaseModel

QUESTION = "How many months are in a year?"
ASK: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
RESPOND: dict[str, Any] = {"model": MODEL, "input": QUESTION, "temperature": 0}
ENDLESS: dict[str, Any] = {"model": MODEL, "prompt": "Once", "max_tokens": 2000, "extra_body": {"ignore_eos": True}}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS, "strict": True}}
NAMED: Any = {"type": "function", "function": {"name": "weather"}}
CALL = marked_call("weather", r'\{"city": "[a-z]{3,8}", "days": [1-9]\}')


class Animal(BaseModel):
    """What an answer is parsed into."""

    kind: Literal["cat", "dog"]
    legs: Literal[2, 4]


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def keyed(guarded: Server) -> Iterator[openai.OpenAI]:
    """Of the server that wants a key and reads calls."""
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def answer(client: openai.OpenAI) -> str:
    """What the model says to the question."""
    text = client.chat.completions.create(**ASK).choices[0].message.content
    assert text == "There are twelve months in a year."
    return text


def check_weather(arguments: str) -> None:
    given = json.loads(arguments)
    assert given.keys() == {"city", "days"}
    assert 1 <= given["days"] <= 9


def test_the_model_is_listed_and_found_by_its_name(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(MODEL) == model
    assert (model.id, model.max_model_len) == (MODEL, 2048)  # type: ignore[attr-defined]


def test_every_route_and_every_stream_says_the_same(client: openai.OpenAI, answer: str) -> None:
    prompt = f"<|user|>{QUESTION}<|end|><|assistant|>"
    fields: dict[str, Any] = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 40}
    text = client.completions.create(**fields)
    assert text.choices[0].text == answer
    *chunks, last = client.completions.create(**fields, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer
    assert last.usage == text.usage

    chat = client.chat.completions.create(**ASK)
    *told, end = client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in told) == answer
    assert len(told) > 3
    assert end.usage.completion_tokens == chat.usage.completion_tokens == text.usage.completion_tokens
    assert end.usage.prompt_tokens == chat.usage.prompt_tokens == text.usage.prompt_tokens

    response = client.responses.create(**RESPOND)
    assert (response.output_text, response.status) == (answer, "completed")
    assert response.usage.output_tokens == chat.usage.completion_tokens
    events = list(client.responses.create(**RESPOND, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == answer


def test_the_helpers_for_streams_accumulate_the_answer(client: openai.OpenAI, answer: str) -> None:
    with client.chat.completions.stream(**ASK, stream_options={"include_usage": True}) as chat:
        deltas = [event.delta for event in chat if event.type == "content.delta"]
        completion = chat.get_final_completion()
    assert "".join(deltas) == completion.choices[0].message.content == answer
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.completion_tokens > 5
    with client.responses.stream(**RESPOND) as response:
        told = [event.delta for event in response if event.type == "response.output_text.delta"]
        final = response.get_final_response()
    assert "".join(told) == final.output_text == answer
    assert final.output[0].id.startswith("msg_")


def test_several_answers_with_log_probabilities(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {**ASK, "temperature": 1, "seed": 7, "n": 3, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**fields, max_tokens=8)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert whole.usage.completion_tokens == sum(len(choice.logprobs.content) for choice in whole.choices)
    for choice in whole.choices:
        entries = choice.logprobs.content
        told = b"".join(bytes(entry.bytes) for entry in entries).decode().removesuffix("<|end|>")
        assert told == choice.message.content
        assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in entries)
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**fields, max_tokens=8, stream=True):
        for part in chunk.choices:
            streamed[part.index] += part.delta.content or ""
    assert streamed == [choice.message.content for choice in whole.choices]
    text = client.completions.create(model=MODEL, prompt=["The", "A"], n=2, max_tokens=4, logprobs=1, seed=1)
    assert [choice.index for choice in text.choices] == [0, 1, 2, 3]
    assert all(len(choice.logprobs.tokens) == 4 for choice in text.choices)


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
@pytest.mark.parametrize("name", ["client", "keyed"], ids=["json", "hermes"])
def test_calls_that_must_be_made(name: str, choice: Any, request: pytest.FixtureRequest) -> None:
    """As JSON for a model without a format of its own, and in the format of Hermes."""
    client: openai.OpenAI = request.getfixturevalue(name)
    fields = {**ASK, "tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False}
    whole = client.chat.completions.create(**fields).choices[0]
    with client.chat.completions.stream(**fields) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.done" in kinds
    for told in (whole, streamed):
        (call,) = told.message.tool_calls
        check_weather(call.function.arguments)
        assert (call.function.name, told.finish_reason) == ("weather", "tool_calls")
    assert streamed.message.tool_calls[0].function.parsed_arguments == json.loads(
        streamed.message.tool_calls[0].function.arguments
    )
    response_tool: Any = {"type": "function", **TOOL["function"]}
    response_choice = choice if choice == "required" else {"type": "function", "name": "weather"}
    responding = {**RESPOND, "tools": [response_tool], "tool_choice": response_choice, "parallel_tool_calls": False}
    with client.responses.stream(**responding) as events:
        (item,) = events.get_final_response().output
    assert (item.type, item.name, item.id[:3]) == ("function_call", "weather", "fc_")
    check_weather(item.arguments)


def test_calls_that_the_model_chooses_to_make_and_their_results(keyed: openai.OpenAI, answer: str) -> None:
    free = keyed.chat.completions.create(**ASK, tools=[TOOL], tool_choice="auto").choices[0]
    assert (free.message.content, free.message.tool_calls, free.finish_reason) == (answer, None, "stop")
    # A model that calls two tools of itself.
    fields = {**ASK, "tools": [TOOL], "extra_body": {"structured_outputs": {"regex": CALL + CALL}}}
    message = keyed.chat.completions.create(**fields).choices[0].message
    assert [call.function.name for call in message.tool_calls] == ["weather", "weather"]
    with keyed.chat.completions.stream(**fields) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert len(streamed.message.tool_calls) == 2
    assert streamed.finish_reason == "tool_calls"
    silent = keyed.chat.completions.create(**{**fields, "tool_choice": "none"}).choices[0]
    assert silent.message.tool_calls is None
    assert silent.message.content.startswith("<tool_call>")
    results: Any = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls]
    after = keyed.chat.completions.create(**{**ASK, "messages": [*ASK["messages"], message, *results]}, tools=[TOOL])
    assert after.choices[0].message.content


def test_answers_are_parsed_into_classes(client: openai.OpenAI, compact: dict[str, int]) -> None:
    chat = client.chat.completions.parse(**ASK, response_format=Animal, logit_bias=compact).choices[0]
    with client.chat.completions.stream(**ASK, response_format=Animal, logit_bias=compact) as stream:
        streamed = stream.get_final_completion().choices[0]
    biased = {"extra_body": {"logit_bias": compact}}
    parsed = client.responses.parse(**RESPOND, text_format=Animal, **biased).output_parsed
    with client.responses.stream(**RESPOND, text_format=Animal, **biased) as events:
        last = events.get_final_response().output_parsed
    for animal in (chat.message.parsed, streamed.message.parsed, parsed, last):
        assert isinstance(animal, Animal)
    free = client.chat.completions.create(**ASK, response_format={"type": "json_object"}, max_tokens=20)
    assert free.choices[0].message.content.startswith("{")
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**ASK, response_format=Animal, max_tokens=2)


def test_errors_are_the_exceptions_that_clients_expect(
    client: openai.OpenAI, keyed: openai.OpenAI, guarded: Server
) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(**{**ASK, "temperature": 9})
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=MODEL, prompt=[5] * 3000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError, match="'gpt-5' is not served here; 'demo' is"):
        client.responses.create(**{**RESPOND, "model": "gpt-5"})
    with pytest.raises(openai.NotFoundError, match="/v1/embeddings"):
        client.embeddings.create(model=MODEL, input="Hello")
    with pytest.raises(openai.AuthenticationError) as unknown:
        keyed.with_options(api_key="another").models.list()
    assert unknown.value.code == "invalid_api_key"
    with pytest.raises(openai.APIStatusError) as large:
        keyed.completions.create(model=MODEL, prompt="a" * 200_000)
    assert large.value.status_code == 413
    assert guarded.num_running == 0


async def test_a_full_queue_is_a_rate_limit_that_retries_outlive(guarded: Server) -> None:
    short: dict[str, Any] = {"model": MODEL, "prompt": "Once", "max_tokens": 3}
    async with openai.AsyncOpenAI(base_url=f"{guarded.url}/v1", api_key=KEY, max_retries=0) as client:
        running = await client.completions.create(**ENDLESS, stream=True)
        await anext(aiter(running))
        waiting = asyncio.create_task(client.completions.create(**short))
        await asyncio.to_thread(eventually, lambda: guarded.num_queued == 1, "one request waits")
        with pytest.raises(openai.RateLimitError) as full:
            await client.completions.create(**short)
        assert int(full.value.response.headers["retry-after"]) >= 1
        retrying = asyncio.create_task(client.with_options(max_retries=8).completions.create(**short))
        await running.close()
        for task in (waiting, retrying):
            assert (await task).usage.completion_tokens == 3


def test_a_server_without_shards_is_unavailable(tmp_path: Path) -> None:
    port = free_port()
    router = start_router("router", [f"unix:{tmp_path}/none.sock"], tmp_path, "--http-port", str(port))
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    try:
        eventually(lambda: is_listening(port), "the router listens")
        with pytest.raises(openai.InternalServerError) as unavailable:
            client.chat.completions.create(**ASK)
    finally:
        router.stop()
    assert (unavailable.value.status_code, unavailable.value.code) == (503, "unavailable")
    assert int(unavailable.value.response.headers["retry-after"]) >= 1
    with pytest.raises(openai.APIConnectionError):
        client.models.list()


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_closing_a_stream_frees_its_request(client: openai.OpenAI, server: Server) -> None:
    num_aborted = server.num_aborted
    stream = client.completions.create(**ENDLESS, stream=True)
    next(iter(stream))
    assert server.num_running == 1
    stream.close()
    server.check_a_request_is_freed(num_aborted)
    with client.chat.completions.stream(**ASK, max_tokens=2000, extra_body={"ignore_eos": True}) as chat:
        next(iter(chat))
    server.check_a_request_is_freed(num_aborted + 1)


def test_a_client_that_does_not_wait_frees_its_request(client: openai.OpenAI, server: Server) -> None:
    num_aborted = server.num_aborted
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).completions.create(**ENDLESS)
    server.check_a_request_is_freed(num_aborted)


async def test_the_asynchronous_client(server: Server, answer: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        chats = await asyncio.gather(*(client.chat.completions.create(**ASK) for _ in range(16)))
        assert {chat.choices[0].message.content for chat in chats} == {answer}
        async with client.chat.completions.stream(**ASK) as stream:
            assert (await stream.get_final_completion()).choices[0].message.content == answer
        async with client.responses.stream(**RESPOND) as events:
            assert (await events.get_final_response()).output_text == answer
        num_aborted = server.num_aborted
        task = asyncio.create_task(client.completions.create(**ENDLESS))
        await asyncio.to_thread(eventually, lambda: server.num_running == 1, "the request runs")
        task.cancel()
        await asyncio.to_thread(server.check_a_request_is_freed, num_aborted)
