"""StructuredOutputsParams: what becomes of it on the wire, what is refused, and the flags of the command line."""

import json

import pytest
from pagewire import InvalidRequest, SamplingParams, StructuredOutputsParams
from pagewire.cli import main
from pagewire.v1 import inference_pb2 as pb

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}}


class Person:
    """As far as it matters, a pydantic model."""

    @classmethod
    def model_json_schema(cls):
        return SCHEMA


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"json": SCHEMA}, pb.StructuredOutputs(json=json.dumps(SCHEMA))),
        ({"json": json.dumps(SCHEMA)}, pb.StructuredOutputs(json=json.dumps(SCHEMA))),
        ({"json": Person}, pb.StructuredOutputs(json=json.dumps(SCHEMA))),
        ({"json": {}}, pb.StructuredOutputs(json="{}")),
        ({"regex": "a+"}, pb.StructuredOutputs(regex="a+")),
        ({"choice": ["a", "b"]}, pb.StructuredOutputs(choice=pb.Choice(options=["a", "b"]))),
        ({"grammar": "start: /a/"}, pb.StructuredOutputs(grammar="start: /a/")),
        ({"json_object": True}, pb.StructuredOutputs(json_object=True)),
        ({"json_object": False, "regex": "a"}, pb.StructuredOutputs(regex="a")),
        ({"structural_tag": {"a": 1}}, pb.StructuredOutputs(structural_tag='{"a": 1}')),
        (
            {
                "json_object": True,
                "disable_any_whitespace": True,
                "disable_additional_properties": True,
                "whitespace_pattern": " ",
                "reasoning_start": "<think>",
                "reasoning_end": "</think>",
            },
            pb.StructuredOutputs(
                json_object=True,
                disable_any_whitespace=True,
                disable_additional_properties=True,
                whitespace_pattern=" ",
                reasoning_start="<think>",
                reasoning_end="</think>",
            ),
        ),
    ],
    ids=str,
)
def test_sent(given, expected):
    params = SamplingParams(structured_outputs=StructuredOutputsParams(**given))
    assert params.to_proto() == pb.SamplingParams(structured_outputs=expected)
    assert params.clone().to_proto() == params.to_proto()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "none of them given, accepted: exactly one of json, regex"),
        ({"json_object": False}, "none of them given"),
        ({"json": {}, "regex": "a"}, "json and regex given"),
        ({"regex": ""}, r"regex: '' given"),
        ({"regex": 3}, r"regex: 3 given"),
        ({"choice": "yes"}, "choice: 'yes' given, accepted: a list of strings"),
        ({"choice": []}, "choice"),
        ({"choice": ["a", ""]}, "choice: '' given"),
        ({"json": {"a": {1, 2}}}, "what JSON can express"),
        ({"json": "\ud800"}, "UTF-8"),
    ],
    ids=str,
)
def test_refused(given, message):
    with pytest.raises(InvalidRequest, match=message) as refused:
        StructuredOutputsParams(**given)
    assert refused.value.violations[0].field.startswith("sampling_params.structured_outputs")


def test_an_attribute_that_is_assigned_is_checked_when_the_request_is_made():
    params = SamplingParams(structured_outputs=StructuredOutputsParams(regex="a"))
    params.structured_outputs.choice = ["b"]
    with pytest.raises(InvalidRequest, match="regex and choice given"):
        params.to_proto()
    params.structured_outputs = {"regex": "a"}
    with pytest.raises(InvalidRequest, match="accepted: StructuredOutputsParams"):
        params.to_proto()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--json-schema", "FILE"], pb.StructuredOutputs(json="{}\n")),
        (["--json-object"], pb.StructuredOutputs(json_object=True)),
        (["--regex", "a+"], pb.StructuredOutputs(regex="a+")),
        (["--choice", "a b", "--choice", "c"], pb.StructuredOutputs(choice=pb.Choice(options=["a b", "c"]))),
        (["--grammar", "FILE"], pb.StructuredOutputs(grammar="{}\n")),
    ],
    ids=str,
)
def test_flags(background_fake, tmp_path, flags, expected):
    path = tmp_path / "schema.json"
    path.write_text("{}\n")
    words = [str(path) if word == "FILE" else word for word in flags]
    assert main(["complete", "one", "--server", background_fake.target, *words]) == 0
    assert background_fake.requests[0].sampling_params.structured_outputs == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--json-schema", "/nowhere/schema.json"], "/nowhere/schema.json: No such file"),
        (["--regex", "a", "--json-object"], "regex and json_object given"),
    ],
    ids=str,
)
def test_flags_that_are_refused(background_fake, capsys, flags, message):
    assert main(["complete", "one", "--server", background_fake.target, *flags]) != 0
    assert message in capsys.readouterr().err
