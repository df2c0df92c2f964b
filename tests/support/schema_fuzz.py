"""Sends what schemathesis makes of /openapi.json to an HTTP front, and checks each answer against the document.

`python tests/support/schema_fuzz.py URL --cases 10000` prints for each operation how its answers were, and exits with
status 1 if one is a fault of the server's or differs from the document.
"""

import argparse
import collections
import hashlib
import json
import random
import re
import sys
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
MAX_TOKENS = 3
"""The model is not what is tested."""
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
NEGATIVE_SHARE = 0.25
TIMEOUT_S = 60


@dataclass
class Report:
    """The answers of one operation."""

    operation: str
    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    num_streams: int = 0
    """Answers of status 200 that were streams."""
    refusals: collections.Counter[str] = field(default_factory=collections.Counter)
    """Messages of answers of status 400 to bodies that fit the schema, without their values."""
    faults: dict[str, str] = field(default_factory=dict)
    """Answers that must not be, by what is wrong with them: the request of one of each."""

    @property
    def share_answered(self) -> float:
        """Answers of status 200 among those to bodies that fit the schema and those that do not."""
        return self.statuses[200] / max(1, self.statuses.total())

    def line(self) -> str:
        """The report as a line."""
        statuses = dict(self.statuses.most_common())
        return f"{self.operation}: {statuses}, {self.num_streams} streams" + "".join(
            f"\n  FAULT {what}\n    {request}" for what, request in self.faults.items()
        )


def fuzz(url: str, num_cases: int, seed: int) -> list[Report]:
    """Sends so many requests to each operation with a body, and a few to each of the others."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    reports = []
    for result in schema.get_all_operations():
        operation = result.ok()
        has_body = operation.method.upper() == "POST"
        num_negative = int(num_cases * NEGATIVE_SHARE) if has_body else 0
        report = Report(f"{operation.method.upper()} {operation.path}")
        number = num_cases - num_negative if has_body else 3
        _send(operation, GenerationMode.POSITIVE, number, seed, report)
        if num_negative:
            _send(operation, GenerationMode.NEGATIVE, num_negative, seed, report)
        reports.append(report)
    return reports


def _send(operation: Any, mode: GenerationMode, number: int, seed: int, report: Report) -> None:
    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=number,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        if isinstance(case.body, dict):
            case.body = _bounded(case.body, is_thinned=mode is GenerationMode.POSITIVE)
        response = case.call(timeout=TIMEOUT_S)
        report.statuses[response.status_code] += 1
        report.num_streams += "text/event-stream" in "".join(response.headers.get("content-type", ()))
        if response.status_code == 400 and mode is GenerationMode.POSITIVE:
            message = json.loads(response.content)["error"]["message"]
            report.refusals[re.sub(r"\d+|'.*'", "_", message)[:90]] += 1
        try:
            case.validate_response(response, checks=CHECKS)
            _check_events(response)
        except (Exception, BaseExceptionGroup) as error:
            what = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            details = " | ".join(str(each).replace("\n", " ")[:600] for each in getattr(error, "exceptions", [error]))
            report.faults.setdefault(f"{what}: {details}", json.dumps(case.body, default=repr)[:2000])

    send()


def _bounded(body: dict[str, Any], *, is_thinned: bool) -> dict[str, Any]:
    """The body with few tokens to generate, and most often with few of its fields.

    Each field may be wrong together with another, or may exceed what the model has. Of some forty hardly any request
    would be answered.
    """
    digest = hashlib.sha256(json.dumps(body, sort_keys=True, default=repr).encode()).digest()
    rng = random.Random(digest)
    if is_thinned and rng.random() < 0.9:
        needed = {"prompt", "messages", "input", "max_tokens", "tokens", "stream"}
        others = [name for name in body if name not in needed]
        kept = set(rng.sample(others, min(len(others), rng.choice((0, 1, 1, 2, 4)))))
        body = {name: value for name, value in body.items() if name in needed or name in kept}
        if "model" in body:
            body["model"] = "demo"
    for name in LENGTHS:
        if type(body.get(name)) in (int, float) and body[name] > MAX_TOKENS:
            body[name] = rng.randint(1, MAX_TOKENS)
    if ("prompt" in body or "messages" in body or "input" in body) and not any(name in body for name in LENGTHS):
        body["max_output_tokens" if "input" in body else "max_tokens"] = MAX_TOKENS
    if rng.random() < 0.8:
        _make_known(body)
    if "stream" not in body and rng.random() < 0.4:
        body["stream"] = True
    if type(body.get("n")) in (int, float) and body["n"] > 4:
        body["n"] = rng.choice((2, 3, 4, body["n"]))
    return body


def _make_known(body: dict[str, Any]) -> None:
    """Leaves only roles that the demo's template knows, and token ids that its vocabulary has."""
    for name in ("messages", "input"):
        for message in body[name] if isinstance(body.get(name), list) else ():
            if not isinstance(message, dict):
                continue
            if message.get("role") in ("developer", "tool"):
                message["role"] = "user"
            if message.get("type") == "function_call_output":
                message |= {"type": "message", "role": "user", "content": "a result"}
            content = message.get("content")
            if isinstance(content, list) and any("tool_use_id" in part for part in content if isinstance(part, dict)):
                message["content"] = "a result"
    for name in ("prompt", "tokens"):
        body[name] = _small(body[name]) if name in body else None
        if body[name] is None:
            del body[name]


def _small(value: Any) -> Any:
    if isinstance(value, list):
        return [_small(each) for each in value]
    return value % 256 if type(value) is int else value


def _check_events(response: Any) -> None:
    """Raises AssertionError if a stream is no row of events, or tells a failure of ours."""
    if "text/event-stream" not in "".join(response.headers.get("content-type", ())):
        return
    text = response.content.decode()
    assert text.endswith("\n\n"), f"the stream is cut off: {text[-200:]!r}"
    for event in text.split("\n\n")[:-1]:
        lines = dict(line.split(": ", 1) for line in event.split("\n"))
        if lines.get("data") not in (None, "[DONE]"):
            told = json.loads(lines["data"])
            error = (told.get("response") or {}).get("error") or told.get("error") or {}
            assert error.get("type") not in ("server_error", "api_error"), f"a stream ends with {error}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--cases", type=int, default=1000, help="of each operation with a body")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--refusals", action="store_true", help="tell why bodies that fit the schema are refused")
    options = parser.parse_args()
    reports = fuzz(options.url, options.cases, options.seed)
    for report in reports:
        print(report.line())
        if options.refusals:
            print("\n".join(f"  {number} {text}" for text, number in report.refusals.most_common(20)))
    sys.exit(any(report.faults for report in reports))


if __name__ == "__main__":
    main()
