"""The schemas of the JSON-Schema-Test-Suite, which the source distribution of the package jsonschema contains."""

import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from models import CACHE

DRAFT = "draft2020-12"


@dataclass(frozen=True, slots=True)
class SuiteSchema:
    """One group of the suite's tests: they share a schema."""

    name: str
    """File and description."""
    schema: Any


def suite_folder(cache: Path = CACHE) -> Path:
    """The suite's tests of the draft; downloaded once, with pip."""
    version = metadata.version("jsonschema")
    folder = cache / f"jsonschema-{version}"
    tests = folder / "json" / "tests" / DRAFT
    if not tests.is_dir():
        with tempfile.TemporaryDirectory() as download:
            what = ("--no-deps", "--no-binary", ":all:", f"jsonschema=={version}")
            subprocess.run((sys.executable, "-m", "pip", "download", "-q", *what, "-d", download), check=True)
            (archive,) = Path(download).glob("*.tar.gz")
            with tarfile.open(archive) as tar:
                tar.extractall(cache, filter="data")
    return tests


def suite_schemas(tests: Path) -> Iterator[SuiteSchema]:
    """All schemas of the draft, the optional ones (formats, big numbers) included."""
    for path in sorted(tests.rglob("*.json")):
        for group in json.loads(path.read_text()):
            name = f"{path.relative_to(tests).with_suffix('')}: {group['description']}"
            yield SuiteSchema(name, group["schema"])
