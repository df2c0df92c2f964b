"""The sections of docs/benchmarks.md about structured output."""

from collections.abc import Iterator, Mapping
from typing import Any

from docs_pages.markdown import cell, figure, table

Result = Mapping[str, Any]


def grammar_tables(result: Result) -> Iterator[str]:
    """What the schemas of the JSON-Schema-Test-Suite come to, then grammars that are meant to take long."""
    measured = result["result"]
    schemas, samples, prepare = measured["schemas"], measured["samples"], measured["prepare_ms"]
    yield table(
        ("JSON-Schema-Test-Suite, draft 2020-12", "number"),
        [
            *((f"schemas: {name}", figure(number)) for name, number in schemas.items()),
            *((f"samples at temperature 1.5: {name}", figure(number)) for name, number in samples.items()),
        ],
    )
    yield f"A schema is ready after {figure(prepare['p50'])} ms, 99 % after {figure(prepare['p99'])} ms."
    yield "Schemas are refused for " + ", ".join(f"`{name}` ({number})" for name, number in measured["refused"].items())
    rows = [
        (cell(each["grammar"]), figure(each["s"]), figure(each["longest_gap_ms"]), cell(each["answer"][:80]))
        for each in measured["hostile"]
    ]
    yield table(("grammar meant to take long", "answered after, s", "longest gap beside it, ms", "answer"), rows)


def structured_tables(result: Result) -> Iterator[str]:
    """Batches with a grammar in every row or in half of the rows, beside the same without."""
    rows = [
        (
            figure(row["batch"]),
            figure(row["none_tokens_per_s"]),
            f"{row['half_ratio']:.3f}",
            f"{row['all_ratio']:.3f}",
            figure(row["all_mask_ms"]),
        )
        for row in result["result"]["rows"]
    ]
    header = (
        "rows",
        "without, tok/s",
        "half of the rows, times as fast",
        "all rows, times as fast",
        "masks of a step, ms",
    )
    yield table(header, rows)
