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
        requests = list(front.runner.requests)
    spans = [span for span in receiver.spans(trace_id=trace_id) if span.kind == SERVER]
    named = [(span.name, span.attributes["http.response.status_code"], span.status) for span in spans]
    assert sorted(named) == [
        ("GET other", 404, UNSET),
        ("POST /v1/completions", 200, UNSET),
        ("POST /v1/completions", 400, UNSET),
        ("POST /v1/completions", 500, ERROR),
    ]
    (served,) = [span for span in spans if span.attributes["http.response.status_code"] == 200]
    assert served.parent_id == parent_id
    assert served.attributes["http.route"] == "/v1/completions"
    assert served.attributes["gen_ai.usage.output_tokens"] == 3
    below = [span.name for span in receiver.spans(trace_id=trace_id) if span.parent_id == served.span_id]
    assert "tokenize" in below
    assert requests[0].trace_context.traceparent.split("-")[1:3] == [trace_id, served.span_id]
    texts = [text for span in spans for text in (span.name, *map(str, span.attributes.values()))]
    assert max(map(len, texts)) <= 256


async def test_a_router_that_does_not_trace_passes_the_clients_context_on(serve_http):
    async with serve_http() as front, httpx2.AsyncClient() as client:
        headers = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "x=1"}
        await client.post(f"{front.base_url}/v1/completions", json=ASK, headers=headers)
        (request,) = front.runner.requests
    assert (request.trace_context.traceparent, request.trace_context.tracestate) == tuple(headers.values())
