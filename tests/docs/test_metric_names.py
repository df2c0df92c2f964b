"""Every metric that a page names is on the metrics page of a running router or shard."""

import re
import urllib.request
from pathlib import Path

import pytest
from cluster import free_port, shards_and_router

DOCS = Path(__file__).resolve().parents[2] / "docs"
NAME = re.compile(r"\bpagewire_[a-z0-9_]*[a-z0-9]\b")
PACKAGES = {"pagewire_common", "pagewire_router", "pagewire_shard", "pagewire_kernels"}


def metrics_page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        return str(response.read().decode())


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of all metrics and of their samples."""
    port, limits = free_port(), tmp_path_factory.mktemp("limits") / "limits.toml"
    limits.write_text("[default]\nconcurrent_requests = 64\n")
    flags = ("--metrics-port", str(port), "--http-port", "0", "--client-limits", str(limits))
    with shards_and_router(Path("demo"), router_flags=flags) as cluster:
        pages = [metrics_page(port), *map(metrics_page, cluster.metrics_ports)]
    names = {name for page in pages for name in re.findall(r"^# TYPE (\S+)", page, re.MULTILINE)}
    return names | {name for page in pages for name in re.findall(r"^(\w+)", page, re.MULTILINE)}


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.name)
def test_metrics_that_a_page_names_exist(page: Path, known: set[str]) -> None:
    named = set(NAME.findall(page.read_text())) - PACKAGES
    assert not named - known
