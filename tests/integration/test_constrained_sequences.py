"""Sequences that grammars constrain, through scheduler, engine and a real model: what they yield, and that it is the
same whatever is done to them on the way."""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jsonschema
import pytest
from model_world import CPU, MakeRunner, ModelWorld
from pagewire.v1 import inference_pb2, shard_pb2
from pagewire.v1.inference_pb2 import Choice, StructuredOutputs
from pagewire_router.admission.structured_outputs import grammar_name
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_router.scheduling.sequence import SequenceGroup
from pagewire_shard.execution.gpu_runner import GraphRunner
from pagewire_shard.execution.graph_capture import CpuCapturer
from pagewire_shard.execution.graph_sizes import GraphSizes
from pagewire_shard.execution.host_transfer import CpuDownlink, CpuUplink
from pagewire_shard.execution.model_runner import ModelRunner
from pagewire_shard.grammar.grammars import Grammars
from pagewire_shard.grammar.vocabulary import VocabularySource
from pagewire_shard.loading.model_loader import load_model
from pagewire_shard.models.decoder import Decoder
from random_models import random_prompts
from scheduling_world import output
from tokenizers import Tokenizer

GRAPH_SIZES = GraphSizes((4, 16), ((24, 2), (24, 16), (512, 16)))
EOS = 0
STOP = inference_pb2.FINISH_REASON_STOP
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "ages": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 120}, "maxItems": 3},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "ages", "kind"],
    "additionalProperties": False,
}
CONSTRAINTS = [
    StructuredOutputs(json=json.dumps(SCHEMA), disable_any_whitespace=True),
    StructuredOutputs(regex="[a-f]{3,9}-[0-9]{1,20}"),
    StructuredOutputs(choice=Choice(options=["yes", "no", "perhaps not"])),
    StructuredOutputs(grammar='start: "(" /[0-9]/ ("+" /[0-9]/)~2..8 ")"'),
    None,
]
PROMPTS = random_prompts((3, 20, 7, 33, 12), seed=4)


@pytest.fixture(scope="module")
def decoder(model: Path) -> Decoder:
    return load_model(model, device=CPU, dtype="float32").model


@pytest.fixture(scope="module")
def grammars(model: Path, decoder: Decoder) -> Iterator[Grammars]:
    grammars = Grammars(num_threads=1)
    grammars.open(VocabularySource((model / "tokenizer.json").read_text(), decoder.spec.vocab_size, (EOS,)))
    yield grammars
    grammars.close()


@pytest.fixture(scope="module")
def decode(model: Path) -> Tokenizer:
    return Tokenizer.from_file(str(model / "tokenizer.json"))


def new_world(
    decoder: Decoder, grammars: Grammars, *, window: int = 2, make_runner: MakeRunner = ModelRunner, **limits
):
    values = {
        "num_blocks": 256,
        "block_size": 16,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 512,
        "max_model_len": 256,
    } | limits
    return ModelWorld(decoder, GroupLimits(**values), window, make_runner=make_runner, grammars=grammars)


def submit(world: ModelWorld, prompt: list[int], outputs: StructuredOutputs | None, **options) -> SequenceGroup:
    given = {"max_tokens": 64, "temperature": 1.0, "eos_token_ids": (EOS,)} | options
    if outputs is not None:
        given |= {"structured_outputs": outputs, "grammar": grammar_name(outputs)}
    return world.submit(prompt, **given)


def submit_all(world: ModelWorld) -> list[SequenceGroup]:
    """A sequence of each constraint, and two more that share its prompt; one without for company."""
    pairs = zip(PROMPTS, CONSTRAINTS, strict=True)
    return [submit(world, prompt, outputs, seed=i, n=3) for i, (prompt, outputs) in enumerate(pairs)]


def outputs_of(groups: list[SequenceGroup]) -> list[list[int]]:
    return [output(group, i) for group in groups for i in range(len(group.sequences))]


@pytest.fixture(scope="module")
def undisturbed(decoder: Decoder, grammars: Grammars) -> list[list[int]]:
    world = new_world(decoder, grammars, window=1)
    groups = submit_all(world)
    world.run()
    return outputs_of(groups)


def test_outputs_match_their_constraints(undisturbed: list[list[int]], decode: Tokenizer) -> None:
    texts = [decode.decode(tokens) for tokens in undisturbed]
    assert all(tokens[-1] == EOS for tokens in undisturbed[:12]), "every grammar here comes to an end"
    for text in texts[:3]:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert all(re.fullmatch("[a-f]{3,9}-[0-9]{1,20}", text) for text in texts[3:6])
    assert all(text in ("yes", "no", "perhaps not") for text in texts[6:9])
    assert all(re.fullmatch(r"\(\d(\+\d){2,8}\)", text) for text in texts[9:12])
    assert len(set(texts)) > 12, "sequences of one request differ"


@pytest.mark.parametrize("window", [2, 4])
def test_plans_in_flight_change_nothing(
    undisturbed: list[list[int]], decoder: Decoder, grammars: Grammars, window: int
) -> None:
    world = new_world(decoder, grammars, window=window)
    groups = submit_all(world)
    world.run()
    assert outputs_of(groups) == undisturbed


def test_steps_of_captured_sizes_change_nothing(
    undisturbed: list[list[int]], decoder: Decoder, grammars: Grammars
) -> None:
    links = {"uplink": CpuUplink(), "downlink": CpuDownlink(), "capturer": CpuCapturer()}
    make_runner = partial(GraphRunner, **links, sizes=GRAPH_SIZES)
    world = new_world(decoder, grammars, make_runner=make_runner)
    groups = submit_all(world)
    world.run()
    assert outputs_of(groups) == undisturbed


def test_chunks_of_prompts_and_prefix_hits_change_nothing(
    undisturbed: list[list[int]], decoder: Decoder, grammars: Grammars
) -> None:
    world = new_world(decoder, grammars, block_size=4, max_num_batched_tokens=9)
    for _ in range(2):
        groups = submit_all(world)
        world.run()
        assert outputs_of(groups) == undisturbed
    assert groups[3].num_cached_tokens > 0


def test_preemption_changes_nothing(undisturbed: list[list[int]], decoder: Decoder, grammars: Grammars) -> None:
    world = new_world(decoder, grammars, block_size=4, num_blocks=60)
    groups = submit_all(world)
    world.run()
    assert outputs_of(groups) == undisturbed
    assert world.scheduler.num_preemptions > 0


def test_a_new_epoch_prepares_anew_and_changes_nothing(
    undisturbed: list[list[int]], decoder: Decoder, grammars: Grammars
) -> None:
    world = new_world(decoder, grammars)
    groups = submit_all(world)
    for num_steps in (7, 1, 4):
        for _ in range(num_steps):
            world.step()
        world.new_epoch()
    world.run()
    assert outputs_of(groups) == undisturbed


def test_min_tokens_holds_as_long_as_the_grammar_can_go_on(
    decoder: Decoder, grammars: Grammars, decode: Tokenizer
) -> None:
    world = new_world(decoder, grammars)
    short = submit(world, PROMPTS[0], StructuredOutputs(regex="[ab]{1,40}"), seed=5)
    long = submit(world, PROMPTS[0], StructuredOutputs(regex="[ab]{1,40}"), seed=5, min_tokens=15)
    ended = submit(world, PROMPTS[0], StructuredOutputs(regex="ab?c"), seed=5, min_tokens=15)
    world.run()
    assert len(output(short)) < 16 <= len(output(long))
    assert decode.decode(output(ended)) in ("abc", "ac")
    assert [group.sequences[0].finish_reason for group in (short, long, ended)] == [STOP] * 3


def test_other_parameters_act_on_what_the_grammar_leaves(
    decoder: Decoder, grammars: Grammars, decode: Tokenizer
) -> None:
    a, b, c = (decode.token_to_id(letter) for letter in "abc")
    world = new_world(decoder, grammars)
    letters = StructuredOutputs(regex="[ab]{12}")
    groups = [
        submit(world, PROMPTS[1], letters, temperature=0.0, logit_bias={b: 50.0, c: 100.0}),
        submit(world, PROMPTS[1], letters, temperature=0.0, logit_bias={a: 90.0}, frequency_penalty=2.0),
        submit(world, PROMPTS[1], letters, seed=3, allowed_token_ids=[a, c, EOS]),
        submit(world, PROMPTS[1], letters, seed=3, stop_token_ids=[a]),
        submit(world, PROMPTS[1], letters, seed=3, eos_token_ids=(), max_tokens=20),
    ]
    plain = submit(world, PROMPTS[1], letters, seed=3, logprobs=2)
    world.run()
    texts = [decode.decode(output(group)) for group in groups]
    assert texts[0] == "b" * 12
    assert texts[1] == "a" * 12, "a bias beats the penalty"
    assert texts[2] == "a" * 12
    assert texts[3].rstrip("a") == "b" * texts[3].count("b")
    assert output(groups[3])[-1] == a
    assert re.fullmatch("[ab]{12}", texts[4])
    assert output(groups[4])[12:] == [EOS] * 8, "behind its end a grammar allows only more of that"
    assert len(world.logprobs[plain.sequences[0]]) == len(output(plain))


def test_a_request_that_its_parameters_leave_no_token_fails_alone(decoder: Decoder, grammars: Grammars) -> None:
    world = new_world(decoder, grammars)
    company = submit(world, PROMPTS[2], CONSTRAINTS[1], seed=1)
    stuck = submit(world, PROMPTS[2], StructuredOutputs(regex="[ab]{12}"), allowed_token_ids=[5])
    world.run()
    assert world.failed == [stuck]
    assert company.sequences[0].finish_reason == STOP


@pytest.mark.parametrize("options", [{"allowed_token_ids": [5]}, {}], ids=["the request", "the grammar"])
def test_a_prompt_stays_cached_when_its_constraint_leaves_no_token(
    decoder: Decoder, grammars: Grammars, monkeypatch: pytest.MonkeyPatch, options: dict[str, list[int]]
) -> None:
    world = new_world(decoder, grammars, block_size=4)
    constraint = StructuredOutputs(regex="[ab]{12}")
    submit(world, PROMPTS[1], None, max_tokens=1)
    world.run()
    with monkeypatch.context() as failing:
        if not options:
            failing.setattr(grammars, "fill_masks", lambda matchers, bits: range(len(matchers)))
        stuck = submit(world, PROMPTS[1], constraint, **options)
        world.run()
    assert world.failures == {stuck: shard_pb2.STOP_REASON_GRAMMAR}
    again = submit(world, PROMPTS[1], constraint)
    world.run()
    assert stuck.num_cached_tokens == again.num_cached_tokens == 16
