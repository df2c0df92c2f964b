"""The HTTP front over a real model: what OpenAI's clients get is what gRPC's clients get."""

import contextlib
import socket
import threading

import anthropic
import openai
import pytest
from pagewire import BeamSearchParams, Client, SamplingParams


@pytest.fixture(scope="module")
def http(http_url):
    with openai.OpenAI(base_url=f"{http_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_completion_is_the_same_as_over_grpc(http: openai.OpenAI, client: Client, model):
    params = SamplingParams(max_tokens=12, temperature=0.7, seed=3, logprobs=2)
    expected = client.complete("The engine", params)
    answer = http.completions.create(
        model=model.name, prompt="The engine", max_tokens=12, temperature=0.7, seed=3, logprobs=2
    )
    (choice,) = answer.choices
    assert choice.text == expected.outputs[0].text
    assert sum(choice.logprobs.token_logprobs) == pytest.approx(expected.outputs[0].cumulative_logprob, abs=1e-4)
    assert answer.usage.completion_tokens == len(expected.outputs[0].token_ids)
    stream = http.completions.create(
        model=model.name, prompt="The engine", max_tokens=12, temperature=0.7, seed=3, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == expected.outputs[0].text


def test_several_prompts_and_sequences_at_once(http: openai.OpenAI, model):
    def texts(stream):
        found = {}
        for chunk in stream:
            for choice in chunk.choices:
                found[choice.index] = found.get(choice.index, "") + choice.text
        return found

    fields = {"model": model.name, "max_tokens": 8, "n": 2, "seed": 5, "extra_body": {"ignore_eos": True}}
    whole = http.completions.create(prompt=["one", "two", "three"], **fields)
    assert [choice.index for choice in whole.choices] == list(range(6))
    assert whole.usage.completion_tokens == 48
    streamed = texts(http.completions.create(prompt=["one", "two", "three"], stream=True, **fields))
    assert streamed == {choice.index: choice.text for choice in whole.choices}


def test_broken_connections_leave_it_serving(http: openai.OpenAI, http_url, model):
    """Half requests, garbage, and clients that leave amid a stream."""
    host, _, port = http_url.removeprefix("http://").partition(":")
    body = b'{"prompt": "Hello", "max_tokens": 400, "stream": true, "ignore_eos": true}'
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    attacks = [
        b"",
        b"\x16\x03\x01 garbage \r\n\r\n",
        b"GET / HTTP/1.1\r\n",
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: 9",
        head % 5_000 + body,
        head % len(body) + body,
        head % len(body) + body + b"GET /health HTTP/1.1\r\n\r\n" * 50,
        b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ]

    def attack():
        for message in attacks:
            with socket.create_connection((host, int(port)), timeout=10) as connection, contextlib.suppress(OSError):
                connection.sendall(message)
                connection.settimeout(0.02)
                connection.recv(100)

    threads = [threading.Thread(target=attack) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert http.completions.create(model=model.name, prompt="Hello", max_tokens=3).usage.completion_tokens <= 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_cut_off_ends_for_its_length(http_url, stream):
    """Its arguments are no JSON then."""
    properties = {"a": {"type": "string", "minLength": 30}}
    tool = {"name": "f", "input_schema": {"type": "object", "properties": properties, "required": ["a"]}}
    with anthropic.Anthropic(base_url=http_url, api_key="none", max_retries=0) as messages:
        fields = {"model": "", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}], "tools": [tool]}
        fields |= {"tool_choice": {"type": "tool", "name": "f"}, "extra_body": {"model": None}}
        if stream:
            with messages.messages.stream(**fields) as events:
                kinds = {event.type for event in events}
            assert "message_stop" in kinds
        else:
            message = messages.messages.create(**fields)
            assert message.stop_reason == "max_tokens"
            assert [block.type for block in message.content] == ["tool_use"]


@pytest.mark.parametrize("stream", [False, True])
def test_echoed_prompts_have_log_probabilities(http: openai.OpenAI, client: Client, model, stream):
    """What evaluations by log-likelihood ask for."""
    params = SamplingParams(max_tokens=2, temperature=0, logprobs=1, prompt_logprobs=1)
    expected = client.complete("The engine runs", params)
    fields = {"model": model.name, "prompt": "The engine runs", "temperature": 0, "logprobs": 1, "echo": True}
    for max_tokens in (2, 0):
        answer = http.completions.create(**fields, max_tokens=max_tokens, stream=stream)
        parts = [chunk for chunk in answer if chunk.choices] if stream else [answer]
        text = "".join(part.choices[0].text for part in parts)
        told = [part.choices[0].logprobs for part in parts if part.choices[0].logprobs]
        values = [value for part in told for value in part.token_logprobs]
        assert text == "The engine runs" + (expected.outputs[0].text if max_tokens else "")
        num_prompt_tokens = len(expected.prompt_logprobs)
        assert len(values) == num_prompt_tokens + max_tokens
        assert values[0] is None
        prompt_values = [next(iter(entry.values())).logprob for entry in expected.prompt_logprobs[1:]]
        assert values[1:num_prompt_tokens] == pytest.approx(prompt_values, abs=1e-4)
        offsets = [offset for part in told for offset in part.text_offset]
        assert offsets == sorted(offsets)
        if not stream:
            assert answer.usage.completion_tokens == max_tokens


@pytest.mark.parametrize("route", ["completions", "chat"])
def test_prompts_have_log_probabilities_in_vllm_s_form(http: openai.OpenAI, client: Client, model, route):
    params = SamplingParams(max_tokens=2, temperature=0, prompt_logprobs=2)
    fields = {"model": model.name, "max_tokens": 2, "temperature": 0, "extra_body": {"prompt_logprobs": 2}}
    if route == "chat":
        messages = [{"role": "user", "content": "The engine runs"}]
        expected = client.chat(messages, params)
        told = http.chat.completions.create(messages=messages, **fields).prompt_logprobs
    else:
        expected = client.complete("The engine runs", params)
        answer = http.completions.create(prompt="The engine runs", n=1, **fields)
        told = answer.choices[0].prompt_logprobs
    assert told[0] is None
    assert len(told) == len(expected.prompt_logprobs)
    for entries, wanted in zip(told[1:], expected.prompt_logprobs[1:], strict=True):
        assert [int(token_id) for token_id in entries] == list(wanted)
        for entry, logprob in zip(entries.values(), wanted.values(), strict=True):
            assert entry["logprob"] == pytest.approx(logprob.logprob, abs=1e-4)
            assert (entry["rank"], entry["decoded_token"]) == (logprob.rank, logprob.decoded_token)


@pytest.mark.parametrize("route", ["completions", "chat"])
def test_a_beam_search_finds_what_it_finds_over_grpc(http: openai.OpenAI, client: Client, model, route):
    params = BeamSearchParams(beam_width=3, max_tokens=6, length_penalty=0.5, early_stopping=True)
    extra = {"use_beam_search": True, "length_penalty": 0.5, "early_stopping": True}
    fields = {"model": model.name, "n": 3, "max_tokens": 6, "temperature": 0, "extra_body": extra}
    if route == "chat":
        messages = [{"role": "user", "content": "The engine"}]
        prompt = {"messages": messages}
        texts = [choice.message.content for choice in http.chat.completions.create(messages=messages, **fields).choices]
    else:
        prompt = {"prompt": "The engine"}
        answer = http.completions.create(prompt="The engine", **fields)
        texts = [choice.text for choice in answer.choices]
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
    (found,) = client.beam_search_many([prompt], params)
    assert len(texts) == 3
    for text, sequence in zip(texts, found.sequences, strict=True):
        assert sequence.text.endswith(text.lstrip() if route == "chat" else text)
