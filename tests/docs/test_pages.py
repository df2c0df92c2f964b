"""Files, links, targets and flags that the documentation names exist, and every page is in the navigation."""

import argparse
import re
import subprocess
from pathlib import Path

import pytest
from pagewire.cli.serve import add_arguments
from pagewire_shard.models.registry import SUPPORTED

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SITE_PAGES = sorted(DOCS.rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *SITE_PAGES]
SOURCES = ("client", "common", "router", "shard", "kernels", "tools", "tests", "benchmarks")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    names = set(re.findall(r"`([\w/.-]+\.(?:py|sh|proto))`", page.read_text()))
    known = {
        path.relative_to(ROOT).as_posix() for folder in (*SOURCES, "protos") for path in (ROOT / folder).rglob("*")
    }
    assert not [name for name in names if not any(path == name or path.endswith(f"/{name}") for path in known)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    # To a file: the site takes files along that pages link to, and knows no folders.
    assert not [link for link in links if "://" not in link and not (page.parent / link).is_file()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_that_are_named_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE)) <= targets


def test_every_architecture_that_is_served_is_listed() -> None:
    listed = re.findall(
        r"`(\w+(?:ForCausalLM|ForConditionalGeneration|LMHeadModel))`", (DOCS / "models.md").read_text()
    )
    assert sorted(listed) == SUPPORTED
    assert f"[{len(SUPPORTED)} architectures](docs/models.md)" in (ROOT / "README.md").read_text()


def test_every_page_is_in_the_navigation_once() -> None:
    trees = re.findall(r"```\{toctree\}\n((?:.|\n)*?)```", (DOCS / "index.md").read_text())
    listed = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    pages = [page.relative_to(DOCS).with_suffix("").as_posix() for page in SITE_PAGES]
    assert sorted(["index", *listed]) == sorted(pages)


@pytest.mark.operate
def test_the_site_builds_without_a_warning() -> None:
    done = subprocess.run([str(ROOT / "tools" / "docs.sh")], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # Nothing is fetched when the site is read: it works offline.
    fetched = re.compile(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(?:https?:)?//")
    site = ROOT / "build" / "site"
    assert not [page.name for page in site.rglob("*.html") if fetched.search(page.read_text())]


FOREIGN_FLAGS = {
    "buf": {"--data", "--http2-prior-knowledge", "--list-methods", "--protocol"},
    "curl": {"--fail", "--silent"},
    "docker": {"--build-arg", "--file", "--tag"},
    "endpoint picker": {
        "--cache-info-metric",
        "--kv-cache-usage-percentage-metric",
        "--lora-info-metric",
        "--total-queued-requests-metric",
        "--total-running-requests-metric",
    },
    "examples in other languages": {"--address"},
    "helm": {"--create-namespace", "--install", "--namespace", "--set", "--wait"},
    "kubectl": {"--cascade", "--from-file", "--namespace", "--previous"},
    "lm-eval": {"--model_args", "--tasks"},
    "numactl": {"--cpunodebind", "--membind"},
    "pip": {"--no-deps", "--target"},
    "protoc": {"--go_opt", "--grpc_out", "--plugin", "--ruby_out"},
    "py-spy": {"--native", "--pid"},
}
"""Flags of other tools, of which pages show commands."""


@pytest.fixture(scope="module")
def own_flags() -> set[str]:
    """Of our commands, as the generated pages list them, of the scripts and examples of this repository, and vLLM's."""
    listed = "".join(path.read_text() for path in (DOCS / "reference").glob("pagewire*.md"))
    scripts = [path for folder in ("tools", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")]
    source = "".join(path.read_text() for path in scripts)
    # The help of `pagewire serve` leaves vLLM's out.
    serve = argparse.ArgumentParser()
    add_arguments(serve)
    taken = {flag for action in serve._actions for flag in action.option_strings}
    return {*re.findall(r"`(--[a-z][a-z0-9-]+)", listed), *re.findall(r'"(--[a-z][a-z0-9-]+)"', source), *taken}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_that_are_named_exist(page: Path, own_flags: set[str]) -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", page.read_text()))
    assert not named - own_flags.union(*FOREIGN_FLAGS.values())
