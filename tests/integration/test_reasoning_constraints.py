"""What a model that reasons is held to behind its reasoning, by the grammars of the shard."""

from collections.abc import Iterator

import grpc
import pytest
from grammar_world import EOS, demo_source, matches, prepare
from pagewire.v1 import inference_pb2
from pagewire_router.http_front.turns import AUTO, REQUIRED, Turn
from pagewire_router.parsing.choice import OutputParsers, choose_format
from pagewire_shard.grammar.grammars import Grammars

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    grammars = Grammars(num_threads=1)
    grammars.open(demo_source())
    yield grammars
    grammars.close()


def outputs_of(format: str, constraint: dict[str, object]) -> inference_pb2.StructuredOutputs:
    """What a turn asks for that has this constraint, or else must call a tool."""
    turn = Turn([{"role": "user", "content": "Hello"}], tools=[TOOL], tool_choice=AUTO if constraint else REQUIRED)
    request = inference_pb2.GenerateRequest()
    if constraint:
        request.sampling_params.structured_outputs.MergeFrom(inference_pb2.StructuredOutputs(**constraint))
    parsers = OutputParsers(choose_format(format, format, templates={}, tokens=()), {})
    turn.fill(request, inference_pb2.Model(), parsers)
    return request.sampling_params.structured_outputs


FINAL = "<|channel|>final<|message|>"
ANALYSIS = "<|channel|>analysis<|message|>They ask.<|end|><|start|>assistant"
COMMENTARY = '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Paris"}'


@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [
        ({"json": '{"type": "object"}'}, [FINAL + "{}", ANALYSIS + FINAL + "{}"], ["{}", ANALYSIS + "{}"]),
        ({"json_object": True}, [FINAL + "{}"], ["{}"]),
        ({"regex": "a+"}, [ANALYSIS * 2 + FINAL + "aa"], [ANALYSIS + "a"]),
        ({"grammar": "start: /a+/"}, [FINAL + "aa"], [FINAL + "b"]),
        ({"choice": inference_pb2.Choice(options=["a", "b"])}, [FINAL + "b", ANALYSIS + FINAL + "a"], [FINAL + "c"]),
        ({}, [COMMENTARY, ANALYSIS + COMMENTARY], [FINAL + COMMENTARY]),
    ],
    ids=["json", "json_object", "regex", "grammar", "choice", "a call"],
)
def test_analysis_may_come_first_in_harmony(
    grammars: Grammars, constraint: dict[str, object], good: list[str], bad: list[str]
) -> None:
    asked = outputs_of("harmony", constraint)
    name = str(asked)
    answer = prepare(grammars, name, asked)
    assert answer.code is grpc.StatusCode.OK, answer
    matcher = grammars.matcher(name, (EOS,))
    assert [text for text in good if not matches(grammars, matcher, text)] == []
    assert [text for text in bad if matches(grammars, matcher, text)] == []
