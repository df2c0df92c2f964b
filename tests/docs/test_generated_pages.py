"""The generated pages say all that their sources say."""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pagewire_router import errors as router_errors
from pagewire_shard import errors as shard_errors

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from docs_pages import benchmark_tables, cli_reference, error_reference, proto_reference  # noqa: E402
from docs_pages.markdown import figure  # noqa: E402


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
        (("--hidden",), {"help": argparse.SUPPRESS}),
    )
    assert "--hidden" not in section
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


def test_types_are_linked_on_the_page_that_has_them() -> None:
    pages = {"inference.md": proto_reference.inference_page(), "shard.md": proto_reference.shard_page()}
    headings = {
        name: {title.lower() for title in re.findall(r"^### (\w+)$", page, re.M)} for name, page in pages.items()
    }
    links = {name: re.findall(r"\]\(([\w.]*)#(\w+)\)", page) for name, page in pages.items()}
    assert ("inference.md", "samplingparams") in links["shard.md"]
    for name, found in links.items():
        assert not [link for link in found if link[1] not in headings[link[0] or name]]


def test_paragraphs_of_a_comment_stay_apart() -> None:
    assert proto_reference._paragraphs(" One\n line.\n\n Another.\n") == "One line.\n\nAnother."


def test_every_error_is_there_with_its_status() -> None:
    page = error_reference.page()
    for error, status in router_errors.STATUS_CODES.items():
        assert f"| `{error.reason}` | `{status.name}` |" in page
    reasons = [error.reason for error in shard_errors.StreamError.__subclasses__()]
    assert reasons
    assert not [reason for reason in reasons if f"| `{reason}` |" not in page]


def test_figures_have_three_digits() -> None:
    assert [figure(value) for value in (27603.4, 999.6, 100.4, 51.02, 0.0998, 0.0)] == [
        "27,600",
        "1,000",
        "100",
        "51",
        "0.0998",
        "0",
    ]


HEAD = {
    "command": "python benchmarks/new.py --out /somewhere/else.json",
    "date": "2026-01-02T03:04:05+00:00",
    "machine": {"cpu": "A|B", "num_cores": 4, "memory_bytes": 2**33},
    "software": {"python": "3.12.1", "packages": {"torch": "2.13.0", "triton": None}},
}


def test_results_of_a_new_benchmark_are_shown_without_tables_of_their_own() -> None:
    measured = {
        "delay_ms": {"median": 1.234, "min": 1.0, "max": 2.0, "values": [1.0]},
        "steps": [{"name": "one", "n": 3}],
    }
    section = benchmark_tables.section("new", {**HEAD, "result": measured})
    assert "```text\npython benchmarks/new.py\n```" in section
    assert "2026-01-02, 4 cores of A\\|B, 8 GiB, Python 3.12.1, torch 2.13.0. Full record" in section
    assert "| delay_ms | 1.23 | 1 to 2 |" in section
    assert "| steps, one, n | 3 |  |" in section


def test_a_part_that_failed_is_not_passed_over() -> None:
    failed = {"state": "failed", "rows": [], "error": "took longer than 5 s", "skipped": None}
    timed = {
        "state": "done",
        "rows": [
            {"name": "decode", "median_us": 10.0, "of_roofline": 0.5, "speed_up": 0.9},
            {"name": "torch, decode", "median_us": 9.0, "of_roofline": 0.6},
        ],
    }
    parts = {"attention:decode": timed, "engine:small": failed}
    section = benchmark_tables.section("gpu-new", {**HEAD, "gpu": {"name": "a GPU"}, "parts": parts})
    assert "| decode | 10 | 50 % | 0.9 |" in section
    assert "torch, decode" not in section
    assert "| `engine:small` | took longer than 5 s |" in section


def test_servers_beside_each_other_become_a_row_each() -> None:
    figures = {key: {"median": 5.0, "min": 4.0, "max": 6.5} for key in benchmark_tables.PEER_COLUMNS}
    result = {"settings": {"streams": "--num-prompts 512"}, "result": {"pagewire": figures, "vllm": figures}}
    note, rows = benchmark_tables.KINDS["peers"].tables(result)
    assert "`--num-prompts 512`" in note
    assert [row.count("|") for row in rows.splitlines()] == [10] * 4
    assert rows.splitlines()[-1].startswith("| vllm | 5 | 4 to 6.5 |")


def test_files_of_the_routers_ceiling_become_one_section_in_order_of_their_steps() -> None:
    figures = {"tokens_per_s": {"median": 5.0}, "loop_busy": {"median": 0.5}}
    results = {}
    for step_ms in (16.0, 3.6):
        rows = [{"streams": 64, "tree": "here", "figures": figures}]
        measured = {"windows": rows, "bursts": [], "profiles": []}
        command = f"python benchmarks/router_ceiling.py --step-ms {step_ms}"
        results[f"router-{step_ms:g}ms"] = {
            **HEAD, "command": command, "settings": {"step_ms": step_ms}, "result": measured,
        }  # fmt: skip
    section = benchmark_tables.router_section(results)
    assert section.count("## ") == section.count("4 cores of") == 1
    assert all(f"--step-ms {step_ms}\n" in section for step_ms in (16.0, 3.6))
    assert "| 64 | 3.6 | here | 5 | 0.5 |\n| 64 | 16 | here | 5 | 0.5 |\n" in section
