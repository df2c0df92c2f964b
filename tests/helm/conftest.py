"""One helm, and the objects that it renders from every set of values in helm/pagewire/ci."""

from pathlib import Path

import pytest
from chart import VALUE_SETS, Object, find_helm, render, values_of


@pytest.fixture(scope="session")
def helm() -> Path:
    return find_helm()


@pytest.fixture(scope="session")
def rendered(helm: Path) -> dict[str, list[Object]]:
    """Objects by set of values."""
    return {name: render(helm, "--values", values_of(name)) for name in VALUE_SETS}


@pytest.fixture(params=VALUE_SETS)
def objects(request: pytest.FixtureRequest, rendered: dict[str, list[Object]]) -> list[Object]:
    """The objects of each set of values in turn."""
    return rendered[request.param]
