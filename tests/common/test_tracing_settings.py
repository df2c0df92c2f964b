"""The OTEL_* variables that turn tracing on, in the router and in the shard alike."""

import pytest
from pagewire_common.tracing.settings import trace_exporters

OTLP = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}
CASES: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "nothing": ({}, ()),
    "endpoint": (OTLP, ("otlp_proto_grpc",)),
    "endpoint of traces": ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317"}, ("otlp_proto_grpc",)),
    "empty endpoint": ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, ()),
    "endpoint of metrics": ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c:4317"}, ()),
    "http": ({**OTLP, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, ("otlp_proto_http",)),
    "http for traces": (
        {**OTLP, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"},
        ("otlp_proto_http",),
    ),
    "unknown protocol": ({**OTLP, "OTEL_EXPORTER_OTLP_PROTOCOL": "carrier-pigeon"}, ("carrier-pigeon",)),
    "exporter": ({"OTEL_TRACES_EXPORTER": "otlp"}, ("otlp_proto_grpc",)),
    "two exporters": ({"OTEL_TRACES_EXPORTER": "console, otlp"}, ("console", "otlp_proto_grpc")),
    "none": ({**OTLP, "OTEL_TRACES_EXPORTER": "none"}, ()),
    "disabled": ({**OTLP, "OTEL_SDK_DISABLED": "TRUE"}, ()),
    "not disabled": ({**OTLP, "OTEL_SDK_DISABLED": "false"}, ("otlp_proto_grpc",)),
    "other settings": ({"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "always_on"}, ()),
}


@pytest.mark.parametrize("case", CASES)
def test_tracing_is_on_where_it_is_asked_for(case: str) -> None:
    environment, expected = CASES[case]
    assert trace_exporters(environment) == expected
