"""buf curl calls a router without its protos: the server describes itself by reflection."""

import base64
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from cluster import Cluster
from example_client import TEXT, cluster_for_clients
from google.rpc import error_details_pb2
from operate_tools import BUF, require_tool
from pagewire import Client, SamplingParams

pytestmark = pytest.mark.operate
NUM_TOKENS = 8


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    require_tool(BUF)
    with cluster_for_clients() as cluster:
        yield cluster


def buf_curl(address: str, method: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments, f"http://{address}{method}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def messages_in(text: str) -> list[Any]:
    """JSON values, one after the other."""
    decoder, messages = json.JSONDecoder(), []
    while text := text.lstrip():
        message, end = decoder.raw_decode(text)
        messages.append(message)
        text = text[end:]
    return messages


def test_the_server_lists_its_methods(cluster: Cluster) -> None:
    run = buf_curl(cluster.address, "", "--list-methods")
    assert run.returncode == 0, run.stderr
    assert {f"pagewire.v1.Inference/{name}" for name in ("Generate", "Complete", "Tokenize", "GetModel")} <= set(
        run.stdout.split()
    )


def test_a_request_written_as_json_streams_json(cluster: Cluster) -> None:
    with Client(cluster.address, timeout_s=60) as client:
        expected = client.complete(TEXT, SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS)).outputs[0]
    request = {"text": TEXT, "sampling_params": {"temperature": 0, "max_tokens": NUM_TOKENS}}
    run = buf_curl(cluster.address, "/pagewire.v1.Inference/Generate", "--data", json.dumps(request))
    assert run.returncode == 0, run.stderr
    started, *deltas, finished = messages_in(run.stdout)
    assert started["started"]["model"] == "demo"
    assert "".join(message["delta"]["text"] for message in deltas) == expected.text
    assert finished["finished"]["usage"]["completionTokens"] == len(expected.token_ids)


def test_a_refusal_shows_its_details(cluster: Cluster) -> None:
    request = {"text": TEXT, "sampling_params": {"temperature": 9}}
    run = buf_curl(cluster.address, "/pagewire.v1.Inference/Complete", "--data", json.dumps(request))
    assert run.returncode != 0
    error = json.loads(run.stderr)
    assert error["code"] == "invalid_argument"
    details = {detail["type"]: detail["value"] for detail in error["details"]}
    # Base64 without padding.
    encoded = base64.b64decode(details["google.rpc.BadRequest"] + "==")
    violations = error_details_pb2.BadRequest.FromString(encoded).field_violations
    assert [violation.field for violation in violations] == ["sampling_params.temperature"]
