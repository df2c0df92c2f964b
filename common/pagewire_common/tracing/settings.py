"""Whether the OTEL_* variables ask for traces, and of which exporters. Everything else is the SDK's to read."""

from collections.abc import Mapping

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def trace_exporters(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the exporters to use, as OpenTelemetry's packages register them; empty: no tracing.

    Tracing is on if an OTLP endpoint or OTEL_TRACES_EXPORTER is set, and neither OTEL_SDK_DISABLED nor an exporter
    named "none" turns it off.
    """
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    named = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    if not named and not any(environment.get(name) for name in ENDPOINTS):
        return ()
    exporters = [name.strip() for name in (named or "otlp").split(",")]
    if "none" in exporters:
        return ()
    return tuple(_otlp(environment) if name == "otlp" else name for name in exporters if name)


def _otlp(environment: Mapping[str, str]) -> str:
    protocol = next((environment[name] for name in PROTOCOLS if environment.get(name)), "grpc")
    return {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}.get(protocol, protocol)
