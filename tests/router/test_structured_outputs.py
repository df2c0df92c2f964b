"""What is checked of structured_outputs before a shard is asked to prepare them."""

import pytest
from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_router.admission.structured_outputs import (
    CONSTRAINTS,
    check_structured_outputs,
    follow_prompt,
    grammar_name,
)
from pagewire_router.admission.validation import Limits, Violations

NAME = "sampling_params.structured_outputs"
Choice = inference_pb2.Choice


def violations_of(*, serves_grammars=True, **fields):
    model = shard_pb2.ShardInfo(max_num_seqs=4, vocab_size=100, serves_grammars=serves_grammars)
    found = Violations()
    given = inference_pb2.StructuredOutputs(**fields)
    check_structured_outputs(given, Limits.of(model, max_n=4, max_logprobs=5), found, NAME)
    return [(violation.field, violation.description) for violation in found.found]


@pytest.mark.parametrize(
    "fields",
    [
        {"json": "{}"},
        {"json_object": True, "disable_any_whitespace": True},
        {"regex": "a+", "reasoning_end": "</think>"},
        {"choice": Choice(options=["yes", "no"])},
        {"grammar": "start: /a/"},
        {"structural_tag": "{}"},
    ],
    ids=str,
)
def test_every_constraint_is_accepted(fields):
    assert violations_of(**fields) == []


@pytest.mark.parametrize(
    ("fields", "field", "description"),
    [
        ({}, NAME, f"holds no constraint; accepted: one of {', '.join(CONSTRAINTS)}"),
        ({"reasoning_end": "x"}, NAME, "holds no constraint"),
        ({"regex": "a", "reasoning_start": "x"}, f"{NAME}.reasoning_start", "without reasoning_end"),
        ({"json_object": False}, f"{NAME}.json_object", "is false"),
        ({"choice": Choice()}, f"{NAME}.choice", "at least one option"),
        ({"choice": Choice(options=["a", ""])}, f"{NAME}.choice", "none of them empty"),
        ({"json": ""}, f"{NAME}.json", "is empty"),
        ({"regex": ""}, f"{NAME}.regex", "is empty"),
        ({"regex": "a" * (1 << 19)}, NAME, "bytes; accepted: up to 524,288"),
        ({"json": "{}", "serves_grammars": False}, NAME, "is not served"),
    ],
    ids=str,
)
def test_refused(fields, field, description):
    ((found, text),) = violations_of(**fields)
    assert found == field
    assert description in text


def test_the_name_follows_from_the_content():
    first = inference_pb2.StructuredOutputs(json="{}", disable_any_whitespace=True)
    again = inference_pb2.StructuredOutputs(disable_any_whitespace=True)
    again.json = "{}"
    assert grammar_name(first) == grammar_name(again)
    assert grammar_name(first) != grammar_name(inference_pb2.StructuredOutputs(json="{}"))
    assert grammar_name(first) != grammar_name(inference_pb2.StructuredOutputs(regex="{}", disable_any_whitespace=True))


@pytest.mark.parametrize(
    ("prompt_end", "start", "end"),
    [
        ("<|assistant|><think>\n", "", "</think>"),
        ("<|assistant|><think>\n\n</think>\n\n", "", ""),
        ("<|assistant|>", "<think>", "</think>"),
        ("", "<think>", "</think>"),
    ],
    ids=["begun", "ended", "to come", "nothing known"],
)
def test_the_prompt_says_whether_reasoning_comes_first(prompt_end, start, end):
    given = inference_pb2.StructuredOutputs(json="{}", reasoning_start="<think>", reasoning_end="</think>")
    follow_prompt(given, prompt_end)
    assert (given.reasoning_start, given.reasoning_end) == (start, end)
    assert (given.HasField("reasoning_start"), given.HasField("reasoning_end")) == (bool(start), bool(end))
