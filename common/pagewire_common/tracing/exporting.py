"""Exports spans in the background, as the OTEL_* variables say. A failing export never stops serving.

A span that has ended goes into a bounded queue, and is dropped when that is full; a thread exports what is queued.
"""

import logging
import threading
import uuid
from collections.abc import Mapping, Sequence
from importlib import metadata

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Tracer

from pagewire_common.version import DISTRIBUTION, version

FLUSH_TIMEOUT_S = 2.0
"""How long queued spans may take to go out at the end of the process."""
_log = logging.getLogger(__name__)


class Tracing:
    """A process's tracers and their exporters."""

    def __init__(self, exporters: Sequence[SpanExporter], resource: Resource) -> None:
        self._exporters = exporters
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        unconditional = TracerProvider(resource=resource, shutdown_on_exit=False, sampler=ALWAYS_ON)
        for exporter in exporters:
            processor = BatchSpanProcessor(exporter)
            self._provider.add_span_processor(processor)
            unconditional.add_span_processor(processor)
        self.tracer: Tracer = self._provider.get_tracer(DISTRIBUTION, version())
        """Samples as OTEL_TRACES_SAMPLER says: unless told otherwise, what the caller sampled."""
        self.unsampled_tracer: Tracer = unconditional.get_tracer(DISTRIBUTION, version())
        """Records every span: for spans about requests that have been sampled already."""

    def shutdown(self) -> None:
        """Sends what is queued; blocks for FLUSH_TIMEOUT_S at most, however dead the endpoint is."""
        flush = threading.Thread(target=self._provider.force_flush, name="trace flush", daemon=True)
        flush.start()
        flush.join(FLUSH_TIMEOUT_S)
        if not flush.is_alive():
            self._provider.shutdown()
            return
        _log.warning("Spans were not sent within %g s of the end and are lost", FLUSH_TIMEOUT_S)
        for exporter in self._exporters:
            exporter.shutdown()


def open_tracing(names: Sequence[str], service_name: str, attributes: Mapping[str, str]) -> Tracing | None:
    """Opens tracing to the exporters of these names; None if none can be loaded, which the log explains.

    Args:
        service_name: describes the process together with the attributes, unless OTEL_SERVICE_NAME and
            OTEL_RESOURCE_ATTRIBUTES do.
    """
    exporters = [exporter for name in names if (exporter := _load_exporter(name)) is not None]
    return Tracing(exporters, _resource(service_name, attributes)) if exporters else None


def _load_exporter(name: str) -> SpanExporter | None:
    """Loads an exporter that OpenTelemetry's packages register. A wrong setting costs the traces, not the service."""
    found = metadata.entry_points(group="opentelemetry_traces_exporter", name=name)
    if not found:
        _log.error("No traces: the OTEL_* variables ask for the exporter %r, whose package is not installed", name)
        return None
    try:
        exporter: SpanExporter = next(iter(found)).load()()
    except Exception as error:  # Whatever an exporter finds wrong with its settings.
        _log.error("No traces: the exporter %r cannot be set up: %s", name, error)
        return None
    return exporter


def _resource(service_name: str, attributes: Mapping[str, str]) -> Resource:
    own = {
        "service.name": service_name,
        "service.version": version(),
        "service.instance.id": str(uuid.uuid4()),
        **attributes,
    }
    return Resource.create().merge(Resource(own)).merge(OTELResourceDetector().detect())
