"""Setting up tracing: what describes the process, and what becomes of settings that are wrong."""

import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.sdk.trace import Span
from pagewire_common.tracing.exporting import Tracing, open_tracing
from pagewire_router.tracing.addresses import client_attributes, server_attributes


def resource_of(tracing: Tracing | None) -> dict[str, object]:
    assert tracing is not None
    span = tracing.tracer.start_span("x")
    assert isinstance(span, Span)
    tracing.shutdown()
    return dict(span.resource.attributes)


def test_a_process_describes_itself() -> None:
    resource = resource_of(open_tracing(["console"], "pagewire-router", {"pagewire.group.id": "7"}))
    assert (resource["service.name"], resource["pagewire.group.id"]) == ("pagewire-router", "7")
    assert resource["service.version"]
    assert resource["service.instance.id"] != resource_of(open_tracing(["console"], "x", {}))["service.instance.id"]


def test_the_environment_describes_it_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "llm")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=pod-1,deployment.environment.name=staging")
    resource = resource_of(open_tracing(["console"], "pagewire-router", {}))
    assert resource["service.name"] == "llm"
    assert resource["service.instance.id"] == "pod-1"
    assert resource["deployment.environment.name"] == "staging"


def test_an_exporter_that_is_not_installed_costs_the_traces_alone(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert open_tracing(["carrier-pigeon"], "pagewire-router", {}) is None
    assert "'carrier-pigeon', whose package is not installed" in caplog.text


def test_an_exporter_with_wrong_settings_costs_the_traces_alone(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")
    with caplog.at_level(logging.ERROR):
        assert open_tracing(["otlp_proto_grpc"], "pagewire-router", {}) is None
    assert "cannot be set up: could not convert string to float: 'soon'" in caplog.text


def test_spans_go_out_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[str] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            request = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
            received.append(f"{self.path} {request.resource_spans[0].scope_spans[0].spans[0].name}")
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        tracing = open_tracing(["otlp_proto_http"], "pagewire-router", {})
        assert tracing is not None
        tracing.tracer.start_span("x").end()
        tracing.shutdown()
        server.shutdown()
    assert received == ["/v1/traces x"]


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("ipv4:10.1.2.3:4567", {"client.address": "10.1.2.3", "client.port": 4567}),
        ("ipv6:%5B::1%5D:4567", {"client.address": "::1", "client.port": 4567}),
        ("ipv6:[::1]:4567", {"client.address": "::1", "client.port": 4567}),
        ("unix:", {}),
    ],
)
def test_addresses_of_clients(peer: str, expected: dict[str, object]) -> None:
    assert client_attributes(peer) == expected


def test_addresses_of_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "machine")
    assert server_attributes("127.0.0.1:50051") == {"server.address": "127.0.0.1", "server.port": 50051}
    assert server_attributes("0.0.0.0:50051") == {"server.address": "machine", "server.port": 50051}
    assert server_attributes("[::]:50051") == {"server.address": "machine", "server.port": 50051}
    assert server_attributes("unix:/run/p.sock") == {"server.address": "/run/p.sock"}
