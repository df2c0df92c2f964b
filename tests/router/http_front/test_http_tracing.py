"""Spans of requests over HTTP, as an OTLP receiver gets them."""

import secrets

import httpx2
import pytest
from otlp_receiver import ERROR, SERVER, UNSET, otlp_receiver
from pagewire_router.errors import StepFailed

ASK = {"model": "tiny", "prompt": "Hello", "max_tokens": 3, "stream": True}


@pytest.fixture
def receiver(monkeypatch):
    with otlp_receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
        yield receiver


async def test_a_request_is_a_span_under_the_clients_with_its_request_below(serve_http, receiver):
    trace_id, parent_id = secrets.token_hex(16), secrets.token_hex(8)
    async with (
        serve_http(config={"trace_exporters": ("otlp_proto_grpc",)}) as front,
        httpx2.AsyncClient(headers={"traceparent": f"00-{trace_id}-{parent_id}-01"}) as client,
    ):
        await client.post(f"{front.base_url}/v1/completions", json=ASK)
        await client.post(f"{front.base_url}/v1/completions", json={**ASK, "top_p": 7})
        front.runner.refusal = StepFailed("the step failed")
        await client.post(f"{front.base_url}/v1/completions", json=ASK)
        await client.get(f"{front.base_url}/v1/{'x' * 10_000}")
        await client.request("PROPFIND", f"{front.base_url}/folder")
        requests = list(front.runner.requests)
    spans = [span for span in receiver.spans(trace_id=trace_id) if span.kind == SERVER]
    named = [(span.name, span.attributes["http.response.status_code"], span.status) for span in spans]
    assert sorted(named) == [
        ("GET", 404, UNSET),
        ("HTTP", 404, UNSET),
        ("POST /v1/completions", 200, UNSET),
        ("POST /v1/completions", 400, UNSET),
        ("POST /v1/completions", 500, ERROR),
    ]
    (served,) = [span for span in spans if span.attributes["http.response.status_code"] == 200]
    assert served.parent_id == parent_id
    assert served.attributes["http.route"] == served.attributes["url.path"] == "/v1/completions"
    assert served.attributes["url.scheme"] == "http"
    assert served.attributes["network.protocol.version"] == "1.1"
    assert served.attributes["user_agent.original"].startswith("python-httpx")
    assert served.attributes["client.address"] == served.attributes["server.address"] == "127.0.0.1"
    (other,) = [span for span in spans if span.name == "HTTP"]
    assert other.attributes["http.request.method"] == "_OTHER"
    assert other.attributes["url.path"] == "/folder"
    assert "http.route" not in other.attributes
    assert served.attributes["gen_ai.usage.output_tokens"] == 3
    below = [span.name for span in receiver.spans(trace_id=trace_id) if span.parent_id == served.span_id]
    assert "tokenize" in below
    assert requests[0].trace_context.traceparent.split("-")[1:3] == [trace_id, served.span_id]
    texts = [text for span in spans for text in (span.name, *map(str, span.attributes.values()))]
    assert max(map(len, texts)) <= 256


@pytest.mark.parametrize(
    ("path", "body", "operation"),
    [
        ("/v1/completions", {"prompt": "a"}, "text_completion"),
        ("/v1/chat/completions", {"max_completion_tokens": 2}, "chat"),
        ("/v1/responses", {"input": "a"}, "chat"),
        ("/v1/messages", {"max_tokens": 2}, "chat"),
    ],
)
async def test_a_span_says_what_was_asked_of_the_model(serve_http, receiver, path, body, operation):
    trace_id = secrets.token_hex(16)
    messages = {} if "prompt" in body or "input" in body else {"messages": [{"role": "user", "content": "a"}]}
    async with (
        serve_http(config={"trace_exporters": ("otlp_proto_grpc",)}) as front,
        httpx2.AsyncClient(headers={"traceparent": f"00-{trace_id}-{'b' * 16}-01"}) as client,
    ):
        answer = await client.post(
            f"{front.base_url}{path}", json={"model": "tiny", "temperature": 0.5, **body, **messages}
        )
        assert answer.status_code == 200, answer.text
    (span,) = [span for span in receiver.spans(trace_id=trace_id) if span.kind == SERVER]
    assert span.attributes["gen_ai.operation.name"] == operation
    assert span.attributes["gen_ai.provider.name"] == "pagewire"
    assert span.attributes["gen_ai.request.model"] == span.attributes["gen_ai.response.model"] == "tiny"
    assert span.attributes["gen_ai.request.temperature"] == 0.5
    assert span.attributes["gen_ai.request.stream"] is False
    assert "gen_ai.output.type" not in span.attributes
    assert span.attributes["gen_ai.response.finish_reasons"]
    assert span.attributes["gen_ai.usage.input_tokens"] > 0


async def test_a_router_that_does_not_trace_passes_the_clients_context_on(serve_http):
    async with serve_http() as front, httpx2.AsyncClient() as client:
        headers = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "x=1"}
        await client.post(f"{front.base_url}/v1/completions", json=ASK, headers=headers)
        (request,) = front.runner.requests
    assert (request.trace_context.traceparent, request.trace_context.tracestate) == tuple(headers.values())
