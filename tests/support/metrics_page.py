"""Reads /metrics pages in Prometheus' text format."""

from prometheus_client.parser import text_string_to_metric_families


def samples_of(text: str) -> dict[tuple[str, ...], float]:
    """Values by name and label values."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
