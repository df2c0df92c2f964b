"""The generated pages say all that their sources say."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from docs_pages import cli_reference, proto_reference  # noqa: E402


def section_of(*arguments: tuple[tuple[str, ...], dict[str, object]]) -> str:
    parser = argparse.ArgumentParser(prog="tool", description="Does something.")
    for names, options in arguments:
        parser.add_argument(*names, **options)  # type: ignore[arg-type]
    return cli_reference._section(parser, level=1)


def test_a_flag_says_its_default_once() -> None:
    section = section_of(
        (("--unsaid",), {"type": int, "default": 0, "help": "a number"}),
        (("--said",), {"default": 3, "help": "another (default: %(default)s)"}),
        (("--none",), {"metavar": "FILE", "help": "a file"}),
        (("--switch",), {"action": "store_true", "help": "a switch"}),
        (("--needed",), {"required": True, "help": "a must"}),
    )
    assert "| `--unsaid UNSAID` | a number (default: 0) |" in section
    assert "| `--said SAID` | another (default: 3) |" in section
    assert "| `--none FILE` | a file |" in section
    assert "| `--switch` | a switch |" in section
    assert "| `--needed NEEDED` | a must (required) |" in section


def test_arguments_choices_and_bars_are_shown() -> None:
    section = section_of(
        (("text",), {"metavar": "TEXT", "help": "what"}),
        (("--place",), {"metavar": "HOST|PATH", "help": "where"}),
        (("--kind",), {"choices": ("a", "b"), "help": "which"}),
        (("--pair",), {"action": argparse.BooleanOptionalAction, "help": "both"}),
    )
    assert "tool TEXT [FLAGS]" in section
    assert "| `TEXT` | what |" in section
    assert "| `--place HOST\\|PATH` | where |" in section
    assert "| `--kind {a,b}` | which |" in section
    assert "| `--pair`, `--no-pair` | both |" in section


@pytest.mark.parametrize(
    "page",
    [cli_reference.client_page, cli_reference.router_page, cli_reference.shard_page],
    ids=lambda page: page.__name__,
)
def test_every_flag_has_a_meaning(page: Callable[[], str]) -> None:
    rows = [line for line in page().splitlines() if line.startswith("| `--")]
    assert rows
    assert not [row for row in rows if row.replace("\\|", "").split("|")[2].strip() in ("", "(default: None)")]


@pytest.mark.parametrize("name", ["inference.proto", "shard.proto"])
def test_every_message_and_field_of_a_protocol_is_there_with_its_comment(name: str) -> None:
    file = proto_reference.read_file(name)
    sections = proto_reference._Page(name).text("# Title").split("\n### ")
    by_title = {section.partition("\n")[0]: section for section in sections[1:]}
    for message in file.message_type:
        rows = [line.split(" | ") for line in by_title[message.name].splitlines() if line.startswith(("| `", "| – `"))]
        assert [row[0].strip("|– ") for row in rows] == [f"`{field.name}`" for field in message.field]
        assert all(len(row) == 4 and row[3].strip(" |") for row in rows), message.name
    for enum in file.enum_type:
        rows = [line.split(" | ") for line in by_title[enum.name].splitlines() if line.startswith("| `")]
        assert [row[0].strip("| ") for row in rows] == [f"`{value.name}`" for value in enum.value]
        assert all(row[2].strip(" |") for row in rows), enum.name


def test_paragraphs_of_a_comment_stay_apart() -> None:
    assert proto_reference._paragraphs(" One\n line.\n\n Another.\n") == "One line.\n\nAnother."
