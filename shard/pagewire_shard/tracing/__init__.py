"""Spans by OpenTelemetry: loaded only if the OTEL_* variables ask for traces."""
