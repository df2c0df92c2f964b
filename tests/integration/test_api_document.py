"""What schemathesis makes of /openapi.json finds neither faults of the server nor answers that the document lacks."""

import json

import httpx2
import jsonschema
import pytest
import schema_fuzz
from cluster import serve

GENERATING = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")


def check(reports: list[schema_fuzz.Report]) -> None:
    told = "\n".join(report.line() for report in reports)
    assert not any(report.faults for report in reports), told


def test_some_requests_of_each_operation(http_url: str):
    reports = schema_fuzz.fuzz(http_url, num_cases=8, seed=1)
    check(reports)
    assert {report.operation.split()[1] for report in reports} >= {*GENERATING, "/tokenize", "/v1/models"}


@pytest.mark.parametrize(
    ("path", "prompt", "chunk"),
    [
        ("/v1/completions", {"prompt": "Once"}, "CompletionChunk"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Once"}]}, "ChatCompletionChunk"),
    ],
)
def test_chunks_with_the_usage_so_far_are_in_the_document(http_url: str, path: str, prompt: dict, chunk: str):
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {**prompt, "max_tokens": 3, "stream": True, "stream_options": options}
    answer = httpx2.post(http_url + path, json=body, timeout=60)
    *events, done = (line.removeprefix("data: ") for line in answer.text.splitlines() if line)
    assert done == "[DONE]"
    document = httpx2.get(http_url + "/openapi.json", timeout=60).json()
    chunks = [json.loads(event) for event in events]
    for each in chunks:
        jsonschema.validate(each, {**document, "$ref": f"#/components/schemas/{chunk}"})
    assert chunks[-1]["usage"]["completion_tokens"] == 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_requests():
    with serve("demo", "--http-port", "0") as service:
        reports = schema_fuzz.fuzz(f"http://{service.http_address()}", num_cases=1_450, seed=2)
        log = service.errors
    check(reports)
    assert "Traceback" not in log
    assert sum(report.statuses.total() for report in reports) >= 10_000
    for report in reports:
        if report.operation.split()[1] in GENERATING:
            assert report.share_answered >= 0.3, report.line()
            assert report.num_streams > 100
