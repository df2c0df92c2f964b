"""What sampling parameters are is written once: the contract, the Python class and the checks agree with the table."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
from pagewire import SamplingParams
from pagewire.parameter_table import BY_NAME, PARAMETERS, Kind, Parameter, Range
from pagewire.v1 import inference_pb2

PROTO = Path(__file__).resolve().parents[2] / "protos" / "pagewire" / "v1" / "inference.proto"
FIELD = re.compile(r"((?:^  //.*\n)+)^  (?:optional |repeated )?([\w<>., ]+?) (\w+) = \d+;", re.MULTILINE)
WIRE_TYPES = {
    Kind.INT: ("int32", "int64"),
    Kind.FLOAT: ("float",),
    Kind.BOOL: ("bool",),
    Kind.TEXTS: ("string",),
    Kind.TOKEN_IDS: ("uint32",),
    Kind.BIASES: ("map<uint32, float>",),
    Kind.MESSAGE: ("StructuredOutputs",),
    Kind.OBJECT: ("google.protobuf.Struct",),
}


def fields_of_the_contract() -> dict[str, tuple[str, str]]:
    """Comment and type of each field of SamplingParams, by name."""
    body = PROTO.read_text().partition("message SamplingParams {\n")[2].partition("\n}\n")[0]
    return {
        match[3]: (" ".join(line.strip(" /") for line in match[1].splitlines()), match[2])
        for match in FIELD.finditer(body)
    }


def test_the_contract_has_the_parameters_of_the_table_in_its_order() -> None:
    names = [field.name for field in inference_pb2.SamplingParams.DESCRIPTOR.fields]
    assert names == [parameter.name for parameter in PARAMETERS] == list(fields_of_the_contract())


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter.name)
def test_the_contract_says_of_a_parameter_what_the_table_says(parameter: Parameter) -> None:
    comment, wire_type = fields_of_the_contract()[parameter.name]
    assert comment == parameter.description
    assert wire_type in WIRE_TYPES[parameter.kind]


@pytest.mark.parametrize("field", dataclasses.fields(SamplingParams), ids=lambda field: field.name)
def test_the_python_class_has_the_defaults_of_the_table_and_their_descriptions(field: dataclasses.Field) -> None:
    parameter = BY_NAME[field.name]
    assert field.default == parameter.default
    assert type(field.default) is type(parameter.default)
    assert f"{field.name}: {parameter.description}" in SamplingParams.__doc__


@pytest.mark.parametrize(
    ("accepted", "text", "inside", "outside"),
    [
        (Range(0.0, 2.0), "0 to 2", [0, 2.0], [-0.01, 2.01]),
        (Range(0.0, 1.0, excludes_low=True), "above 0, at most 1", [1e-9, 1], [0.0, 1.1]),
        (Range(0.0, excludes_low=True), "above 0", [1e9], [0.0]),
        (Range(-1), "-1 or more", [-1, 0, 9], [-2]),
        (Range(-1, excludes_zero=True), "-1, or 1 or more", [-1, 1], [0, -2]),
        (Range(-1, 8, excludes_zero=True), "-1, or 1 to 8", [-1, 1, 8], [0, 9]),
    ],
    ids=str,
)
def test_a_range_says_what_it_holds(accepted: Range, text: str, inside: list[float], outside: list[float]) -> None:
    assert str(accepted) == text
    assert all(map(accepted.holds, inside))
    assert not any(map(accepted.holds, [*outside, math.nan, math.inf, -math.inf]))
