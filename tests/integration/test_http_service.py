"""The HTTP front over a real model: what OpenAI's clients get is what gRPC's clients get."""

import contextlib
import socket
import threading

import openai
import pytest
from pagewire import Client, SamplingParams


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
