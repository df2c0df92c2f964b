"""Whatever is sent to a server's ports, it answers, lives on and logs no traceback. More cases: support/fuzz.py."""

import fuzz
import pytest


def check(num_messages: int, num_connections: int, num_http: int, seed: int) -> None:
    reports = fuzz.fuzz(num_messages, num_connections, num_http, seed)
    assert [report.faults for report in reports] == [[], [], []], "\n".join(report.line() for report in reports)


def test_a_few_broken_messages_and_connections() -> None:
    check(num_messages=200, num_connections=60, num_http=60, seed=1)


@pytest.mark.slow
def test_many_broken_messages_and_connections() -> None:
    check(num_messages=10_000, num_connections=1_000, num_http=2_000, seed=2)
