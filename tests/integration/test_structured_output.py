"""Structured output through the real service: every constraint, refusals, a shard that is killed."""

import json
import os
import re
import signal
from pathlib import Path

import jsonschema
import pytest
from cluster import eventually, serve
from pagewire import (
    AsyncClient,
    Client,
    InvalidRequest,
    SamplingParams,
    StructuredOutputsParams,
    TokenDelta,
)

PROMPT = {"prompt_token_ids": [7, 9, 11]}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TAG = {"structures": [{"begin": "<c>", "schema": SCHEMA, "end": "</c>"}], "triggers": ["<c>"]}


def params(*, seed: int = 1, max_tokens: int = 120, n: int = 1, **constraint: object) -> SamplingParams:
    outputs = StructuredOutputsParams(**constraint)  # type: ignore[arg-type]
    return SamplingParams(seed=seed, max_tokens=max_tokens, n=n, structured_outputs=outputs)


def texts(client: Client, sampling: SamplingParams) -> list[str]:
    """The outputs, all of which have come to their end."""
    outputs = client.complete(PROMPT, sampling).outputs
    assert {output.finish_reason for output in outputs} == {"stop"}
    return [output.text for output in outputs]


def test_the_server_says_that_it_serves_structured_output(client: Client) -> None:
    assert client.get_model().supports_structured_outputs


def test_a_json_schema_and_each_of_several_sequences(client: Client) -> None:
    found = texts(client, params(json=SCHEMA, disable_any_whitespace=True, n=4))
    for text in found:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert len(set(found)) > 1
    assert texts(client, params(json=SCHEMA, disable_any_whitespace=True, n=4)) == found


def test_patterns_choices_and_grammars(client: Client) -> None:
    assert re.fullmatch(r"[a-c]{2}\d{1,4}", texts(client, params(regex=r"[a-c]{2}\d{1,4}"))[0])
    assert set(texts(client, params(choice=["left", "right"], n=4))) == {"left", "right"}
    assert re.fullmatch(r"a(b|c){1,5}d", texts(client, params(grammar='start: "a" /(b|c){1,5}/ "d"'))[0])
    assert re.fullmatch(r"x\d?y", texts(client, params(grammar='root ::= "x" [0-9]? "y"'))[0])


def test_any_object(client: Client) -> None:
    output = client.complete(PROMPT, params(json_object=True, max_tokens=40)).outputs[0]
    assert output.text.startswith("{")
    if output.finish_reason == "stop":
        assert isinstance(json.loads(output.text), dict)


def test_free_text_may_come_first(client: Client) -> None:
    sampling = params(regex="yes|no", reasoning_end="t>", max_tokens=400)
    sampling.logit_bias = dict.fromkeys(client.tokenize("t>", add_special_tokens=False), 4.0)
    head, _, tail = texts(client, sampling)[0].partition("t>")
    assert head
    assert tail in ("yes", "no")


def test_a_tag_constrains_what_follows_its_trigger(client: Client) -> None:
    sampling = params(structural_tag=TAG, max_tokens=400, disable_any_whitespace=True)
    sampling.logit_bias = dict.fromkeys(client.tokenize("<c>", add_special_tokens=False), 6.0)
    text = client.complete(PROMPT, sampling).outputs[0].text
    calls = re.findall("<c>(.*?)</c>", text, re.DOTALL)
    assert calls
    for call in calls:
        jsonschema.validate(json.loads(call), SCHEMA)


def test_a_stop_string_ends_a_constrained_sequence(client: Client) -> None:
    sampling = params(regex="(ab|ba){30}")
    sampling.stop = ["aab"]
    output = client.complete(PROMPT, sampling).outputs[0]
    assert (output.finish_reason, output.stop_reason) == ("stop", "aab")
    assert "aab" not in output.text


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        ({"json": {"type": "object", "not": {"required": ["a"]}}}, "not"),
        ({"json": "{"}, "JSON"),
        ({"regex": "(a"}, ""),
        ({"grammar": "start: missing"}, "missing"),
        ({"structural_tag": {"structures": 3}}, ""),
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused_by_name(client: Client, constraint: dict, reason: str) -> None:
    for _ in range(2):
        with pytest.raises(InvalidRequest) as refused:
            client.complete(PROMPT, params(**constraint))
        (violation,) = refused.value.violations
        assert violation.field == "sampling_params.structured_outputs"
        assert reason in violation.description


async def test_a_constrained_stream_goes_on_when_its_shard_is_killed(model: Path) -> None:
    """The state of the grammar is rebuilt from the tokens on the shard that takes its place."""
    sampling = params(regex="([a-m]{5}-){60}", max_tokens=360, n=2)
    with serve(model, "--block-size", "16", "--kv-cache-memory", "32MiB") as server:
        address = server.wait_ready()
        with Client(address, timeout_s=120) as client:
            expected = [output.text for output in client.complete(PROMPT, sampling).outputs]
        (shard,) = server.children("pagewire_shard")
        pieces = ["", ""]
        killed = False
        async with AsyncClient(address, timeout_s=120) as client:
            async for event in client.generate(PROMPT, sampling):
                if isinstance(event, TokenDelta):
                    pieces[event.index] += event.text
                    if not killed and min(map(len, pieces)) > 30:
                        killed = True
                        os.kill(shard, signal.SIGKILL)
        assert killed
        assert pieces == expected
        eventually(lambda: len(server.children("pagewire_shard")) == 1, "the shard runs again")
