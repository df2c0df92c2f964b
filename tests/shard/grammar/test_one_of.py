"""`oneOf` is followed where its options exclude each other, and refused where that is not certain."""

import json
from typing import Any

import grpc
import pytest
from grammar_world import matches, outputs, prepare
from pagewire_shard.grammar.one_of import exclude_each_other


def tagged(kind: Any, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"kind": kind, "x": {"type": "integer"}}, "required": ["kind"], **more}


A, B = {"const": "a"}, {"const": "b"}
ROOT = {"$defs": {"A": tagged(A), "B": {"$ref": "#/$defs/C"}, "C": tagged(B), "loop": {"$ref": "#/$defs/loop"}}}


@pytest.mark.parametrize(
    "options",
    [
        [{"const": 1}, {"const": 2}, {"enum": ["a", None, True]}],
        [{"type": "string"}, {"type": ["integer", "null"]}],
        [tagged(A), tagged(B), tagged({"enum": ["c", "d"]})],
        [tagged(A), {**tagged(B), "type": ["object", "null"]}],
        [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}],
        [{"$ref": "#/$defs/A", "description": "first"}, tagged(B), {"type": "null"}],
    ],
)
def test_options_that_exclude_each_other(options: list[Any]):
    assert exclude_each_other(options, ROOT)


@pytest.mark.parametrize(
    "options",
    [
        [{"const": 1}, {"const": 1.0}],
        [{"type": "integer"}, {"type": "number"}],
        [{"const": [1]}, {"const": [1.0]}],
        [tagged(A), tagged(A)],
        [tagged(A), tagged(B, required=[])],
        [{key: part for key, part in tagged(kind).items() if key != "type"} for kind in (A, B)],
        [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/nobody"}],
        [{"$ref": "#/$defs/loop"}, {"$ref": "#/$defs/loop"}],
        [True, {"const": 1}],
        [{}, {}],
    ],
)
def test_options_that_may_both_match(options: list[Any]):
    assert not exclude_each_other(options, ROOT)


def test_a_tagged_union_is_followed(grammars, start):
    schema = {
        "oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}],
        "discriminator": {"propertyName": "kind"},
        **ROOT,
    }
    matcher = start(json=json.dumps(schema))
    assert matches(grammars, matcher, '{"kind": "a", "x": 1}')
    assert matches(grammars, matcher, '{"kind": "b"}')
    assert not matches(grammars, matcher, '{"kind": "c"}')
    assert not matches(grammars, matcher, '{"x": 1}')


def test_options_beside_any_of_are_refused(grammars):
    schema = {"oneOf": [{"const": 1}, {"const": 2}], "anyOf": [{"type": "integer"}]}
    answer = prepare(grammars, "refused", outputs(json=json.dumps(schema)))
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "`oneOf`" in answer.message
