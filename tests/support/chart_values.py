"""values.yaml of the chart, leaf by leaf."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml


def leaves(file: Path) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Path and value of everything that is no mapping with entries."""
    yield from _leaves((), yaml.safe_load(file.read_text()))


def _leaves(path: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _leaves((*path, key), part)
    else:
        yield path, value
