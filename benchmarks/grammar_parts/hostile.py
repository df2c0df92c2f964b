"""Sources that cost much more to compile, or to follow, than to write."""

import json
from typing import Any

from pagewire.v1 import inference_pb2


def outputs(**fields: Any) -> inference_pb2.StructuredOutputs:
    """A source; `choice` is a list of texts."""
    if "choice" in fields:
        fields["choice"] = inference_pb2.Choice(options=fields["choice"])
    return inference_pb2.StructuredOutputs(**fields)


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def _doubling(num_levels: int, keyword: str) -> dict[str, Any]:
    """Each definition refers twice to the next one: 2 ** num_levels schemas, written out."""
    definitions: dict[str, Any] = {
        f"d{i}": {keyword: [{"$ref": f"#/$defs/d{i + 1}"}, {"$ref": f"#/$defs/d{i + 1}"}]} for i in range(num_levels)
    }
    definitions[f"d{num_levels}"] = {"type": "object", "properties": {"x": {"type": "string"}}}
    return {"$defs": definitions, "$ref": "#/$defs/d0"}


def _crossed(num_factors: int, num_options: int) -> dict[str, Any]:
    """num_options ** num_factors combinations."""
    factor = [
        {
            "anyOf": [
                {"properties": {f"p{f}_{o}": {"type": "integer"}}, "required": [f"p{f}_{o}"]}
                for o in range(num_options)
            ]
        }
        for f in range(num_factors)
    ]
    return {"type": "object", "allOf": factor}


def _schema(schema: Any) -> inference_pb2.StructuredOutputs:
    return outputs(json=json.dumps(schema))


HOSTILE: dict[str, inference_pb2.StructuredOutputs] = {
    "schema nested 100 deep": _schema(_nested(100)),
    "schema nested 10,000 deep": outputs(json='{"items":' * 10_000 + "{}" + "}" * 10_000),
    "arrays nested 100,000 deep": outputs(json='{"enum": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    "oneOf of 2^24 schemas": _schema(_doubling(24, "oneOf")),
    "allOf of 2^24 schemas": _schema(_doubling(24, "allOf")),
    "anyOf of 2^24 schemas": _schema(_doubling(24, "anyOf")),
    "allOf of 8^8 combinations": _schema(_crossed(8, 8)),
    "enum of 30,000 strings": _schema({"enum": [f"value {i}" for i in range(30_000)]}),
    "choice of 25,000 strings": outputs(choice=[f"option {i} of many" for i in range(25_000)]),
    "1 MB regex of letters": outputs(regex="a" * (1 << 20)),
    "0.5 MB regex of letters": outputs(regex="a" * 500_000),
    "1 MB regex of alternatives": outputs(regex="|".join(f"a{i}b*" for i in range(110_000))),
    "0.5 MB regex of alternatives": outputs(regex="|".join(f"a{i}b*" for i in range(50_000))),
    "1 MB regex of groups": outputs(regex="(" * 200_000 + "a" + ")*" * 200_000),
    "nested quantifiers": outputs(regex="((((a{1,100}){1,100}){1,100}){1,100}){1,100}"),
    "quantifier of a billion": outputs(regex="[a-z]{1000000000}"),
    "exponential automaton": outputs(regex="(a|b)*a(a|b){2000}"),
    "catastrophic alternation": outputs(regex="(a|a|aa|aaa)*(a|aa)*(b|bb)*" * 200),
    "intersection of lookalikes": outputs(
        grammar="start: X\nX: " + " & ".join(f"/(.*[ab].{{{i}}})*c/" for i in range(2, 30))
    ),
    "complement": outputs(grammar="start: X\nX: ~/(.*a.{40}b.*)/ & ~/(.*b.{41}a.*)/ & /.{0,5000}/"),
    "left recursion": outputs(grammar='start: start "a" | start start | "a"'),
    "recursion without text": outputs(grammar="start: a\na: b\nb: a"),
    "ambiguous without text": outputs(grammar="start: a a a a a a a a a a\na: | a a | b\nb: a | "),
    "ambiguous": outputs(grammar="start: e\n" + 'e: e e | e e e | e e e e | "a" | "a" "a" | "aa"'),
    "doubling rules": outputs(
        grammar="start: r0\n" + "\n".join(f"r{i}: r{i + 1} r{i + 1}" for i in range(40)) + '\nr40: "a"'
    ),
    "EBNF nested 5,000 deep": outputs(grammar="root ::= " + "(" * 5_000 + '"a"' + ")*" * 5_000),
    "EBNF of 0.5 MB": outputs(grammar="root ::= " + " | ".join(f'"option {i}"' for i in range(28_000))),
    "10,000 tags": outputs(
        structural_tag=json.dumps(
            {
                "structures": [
                    {"begin": f"<f{i}>", "schema": {"type": "object"}, "end": "</f>"} for i in range(10_000)
                ],
                "triggers": ["<f"],
            }
        )
    ),
}
"""By what is hostile about them. Some are compiled after all, within the limits."""
