"""What schemathesis makes of /openapi.json finds neither faults of the server nor answers that the document lacks."""

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
