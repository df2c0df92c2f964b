"""Random numbers that begin anew in each test, and the marker of the suites around the engine."""

import random
import sys
from pathlib import Path

import pytest

DELIVERY = {Path(__file__).parent / name for name in ("docs", "helm", "metrics")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives every test of these folders the marker `delivery`."""
    for item in items:
        if DELIVERY & set(item.path.parents):
            item.add_marker(pytest.mark.delivery)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Lets a test that draws without a generator of its own compute with the same numbers in every run."""
    random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
