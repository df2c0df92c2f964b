"""Marks the suites about what is delivered around the engine: the chart, dashboards and alerts, the documentation."""

from pathlib import Path

import pytest

DELIVERY = {Path(__file__).parent / name for name in ("docs", "helm", "metrics")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives every test of these folders the marker `delivery`."""
    for item in items:
        if DELIVERY & set(item.path.parents):
            item.add_marker(pytest.mark.delivery)
