"""The parser against canitoolcall's fixtures: outputs of real models, chat templates and other engines' tests.

Each fixture must give the same result wherever its stream is cut. The figures stand in docs/tool-calls.md.
"""

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from canitoolcall.checks import case_status, run_checks
from canitoolcall.fixtures import load_families, load_fixtures
from canitoolcall.results import Observation, ParsedToolCall, ParseResult, Status
from pagewire_router.parsing.choice import OutputParsers, choose_format
from pagewire_router.parsing.events import ContentDelta, ReasoningDelta, ToolCallArguments, ToolCallStart

PAGE = Path(__file__).parents[2] / "docs" / "tool-calls.md"
FIXTURES = list(load_fixtures())
FAMILIES = load_families()
PARSERS = (
    (r"openai/gpt-oss", "harmony", "harmony"),
    (r"Llama-3", "llama3_json", "none"),
    (r"Llama-4", "pythonic", "none"),
    (r"Qwen3-Coder|Qwen3\.\d", "qwen3_coder", "think"),
    (r"GLM", "glm45", "think"),
    (r"gemma-4", "gemma4", "gemma4"),
    (r"Kimi-K3", "kimi_k3", "kimi_k3"),
    (r"Kimi-K2", "kimi_k2", "think"),
    (r"Magistral-Small-2506", "mistral", "think"),
    (r"mistralai", "mistral", "mistral"),
    (r"DeepSeek-V3-", "deepseek_v3", "think"),
    (r"DeepSeek-V3\.1", "deepseek_v31", "think"),
    (r"DeepSeek-V3\.2", "deepseek_v32", "think"),
    (r"DeepSeek-V4-", "deepseek_v4", "think"),
    (r"DeepSeek-V4\.1", "deepseek_v41", "think"),
)
"""The parsers of each model. The suite holds no chat templates to tell them by."""


def parsers_of(fixture):
    if fixture.family == "qwen3-hermes":
        return "hermes", "think"
    return next((tools, reasoning) for name, tools, reasoning in PARSERS if re.search(name, fixture.models[0]))


def prompt_of(fixture):
    if fixture.generation_prompt is not None:
        return fixture.generation_prompt
    return FAMILIES[fixture.family].reference_for(fixture.models[0]).default_generation_prompt or ""


def parse(fixture, pieces):
    """(content, reasoning, calls with their arguments as JSON text)."""
    format = choose_format(*parsers_of(fixture), templates={}, tokens=())
    parser = OutputParsers(format, {}).new(tools=fixture.tools, prompt=prompt_of(fixture))
    events = [event for piece in pieces for event in parser.feed(piece)]
    events += parser.finish(stopped=not fixture.truncated)
    content = "".join(event.text for event in events if isinstance(event, ContentDelta))
    reasoning = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    names = [event.name for event in events if isinstance(event, ToolCallStart)]
    arguments = [""] * len(names)
    for event in events:
        if isinstance(event, ToolCallArguments):
            arguments[event.index] += event.text
    return content, reasoning, tuple(zip(names, arguments, strict=True))


def problems(fixture):
    """(status, what the suite finds wrong) of the parse of a fixture in one piece."""
    content, reasoning, calls = parse(fixture, [fixture.raw_output])
    result = ParseResult(content or None, reasoning or None, tuple(ParsedToolCall(*call) for call in calls))
    rows = run_checks(fixture, FAMILIES.get(fixture.family), Observation(nonstream=result, streams={}))
    return case_status(rows), [f"{row.check}: {row.detail}" for row in rows if row.status is not Status.PASS]


def random_pieces(text, seed):
    rng = random.Random(seed)
    pieces = []
    while text:
        length = rng.randint(1, 12)
        pieces.append(text[:length])
        text = text[length:]
    return pieces


def measured_table():
    counts = {}
    for fixture in FIXTURES:
        counts.setdefault((fixture.family, parsers_of(fixture)[0]), Counter())[problems(fixture)[0]] += 1
    return [
        f"| {family} | `{tools}` | {count.total()} | {count[Status.PASS]} | {count[Status.SOFT_PASS]} "
        f"| {count[Status.FAIL] + count[Status.ERROR]} |"
        for (family, tools), count in sorted(counts.items())
    ]


def test_at_most_one_fixture_in_twenty_fails():
    failed = {fixture.id: found for fixture in FIXTURES if (found := problems(fixture))[0] is Status.FAIL}
    assert len(failed) * 20 <= len(FIXTURES), json.dumps({key: value[1] for key, value in failed.items()}, indent=1)


def test_the_page_has_the_figures():
    rows = [line for line in PAGE.read_text().splitlines() if re.match(r"\| [\w-]+ \| `\w+` \| \d+ \|", line)]
    assert rows == measured_table(), "docs/tool-calls.md should have:\n" + "\n".join(measured_table())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_results_do_not_depend_on_the_cut(family):
    for fixture in (fixture for fixture in FIXTURES if fixture.family == family):
        whole = parse(fixture, [fixture.raw_output])
        assert parse(fixture, fixture.raw_output) == whole, fixture.id
        for seed in range(3):
            assert parse(fixture, random_pieces(fixture.raw_output, seed)) == whole, (fixture.id, seed)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_results_do_not_depend_on_any_single_cut(family):
    for fixture in (fixture for fixture in FIXTURES if fixture.family == family):
        text = fixture.raw_output
        whole = parse(fixture, [text])
        for cut in range(1, len(text)):
            assert parse(fixture, [text[:cut], text[cut:]]) == whole, (fixture.id, cut)
