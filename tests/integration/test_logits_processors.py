"""Logits processors through scheduler, engine and a model: what is done to sequences on the way changes nothing."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from model_world import MakeRunner, ModelWorld
from pagewire.v1.inference_pb2 import StructuredOutputs
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
from processors import Chain, Failing, chained
from random_models import VOCAB_SIZE, random_prompts
from scheduling_world import output
from subject import Subject
from tokenizers import Tokenizer

GRAPH_SIZES = GraphSizes((4, 16), ((24, 2), (24, 16), (512, 16)))
PROMPTS = random_prompts((3, 20, 7, 33), seed=4)
NUM_TOKENS = 24


def new_world(llama: Subject, *, window: int = 2, make_runner: MakeRunner = ModelRunner, grammars=None, **limits):
    values = {
        "num_blocks": 256,
        "block_size": 16,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 512,
        "max_model_len": 96,
    }
    return ModelWorld(
        llama.model,
        GroupLimits(**values | limits),
        window,
        make_runner=make_runner,
        grammars=grammars,
        processors=(Failing, Chain),
    )


def submit_all(world: ModelWorld) -> list[SequenceGroup]:
    """Two chained sequences of each prompt, with log-probabilities, and one without arguments for company."""
    asked = {"max_tokens": NUM_TOKENS, "extra_args": {"chain": 1}}
    return [
        *(world.submit(prompt, n=2, seed=i, logprobs=1, temperature=0.9, **asked) for i, prompt in enumerate(PROMPTS)),
        world.submit(PROMPTS[0], max_tokens=NUM_TOKENS, temperature=0.0),
    ]


def check(world: ModelWorld, groups: list[SequenceGroup], plain: list[int]) -> None:
    """The chained sequences are what their history says, the plain one is what it is without processors."""
    for group, prompt in zip(groups, PROMPTS, strict=False):
        expected: list[int] = []
        for _ in range(NUM_TOKENS):
            expected.append(chained(prompt, expected, VOCAB_SIZE))
        for index, sequence in enumerate(group.sequences):
            assert output(group, index) == expected
            assert len(world.logprobs[sequence]) == NUM_TOKENS
            # Of the model's own distribution, in which the forced tokens are not certain.
            assert min(entry.logprob for entry in world.logprobs[sequence]) < -1
    assert output(groups[-1]) == plain
    assert not world.failed


@pytest.fixture(scope="module")
def plain(llama: Subject) -> list[int]:
    world = llama.world(max_model_len=96)
    group = world.submit(PROMPTS[0], max_tokens=NUM_TOKENS, temperature=0.0)
    world.run()
    return output(group)


@pytest.mark.parametrize("window", [1, 2, 4])
def test_plans_in_flight_change_nothing(llama: Subject, plain: list[int], window: int) -> None:
    world = new_world(llama, window=window)
    groups = submit_all(world)
    world.run()
    check(world, groups, plain)


def test_chunks_of_prompts_and_prefix_hits_change_nothing(llama: Subject, plain: list[int]) -> None:
    world = new_world(llama, block_size=4, max_num_batched_tokens=9)
    for _ in range(2):
        groups = submit_all(world)
        world.run()
        check(world, groups, plain)
    assert groups[3].num_cached_tokens


def test_preemption_changes_nothing(llama: Subject, plain: list[int]) -> None:
    world = new_world(llama, block_size=4, num_blocks=40)
    groups = submit_all(world)
    world.run()
    assert world.scheduler.num_preemptions > 0
    check(world, groups, plain)


def test_a_lost_shard_changes_nothing(llama: Subject, plain: list[int]) -> None:
    world = new_world(llama)
    groups = submit_all(world)
    for num_steps in (7, 1, 4):
        for _ in range(num_steps):
            world.step()
        world.new_epoch()
    world.run()
    check(world, groups, plain)


def test_steps_of_captured_sizes_change_nothing(llama: Subject, plain: list[int]) -> None:
    links = {"uplink": CpuUplink(), "downlink": CpuDownlink(), "capturer": CpuCapturer()}
    world = new_world(llama, make_runner=partial(GraphRunner, **links, sizes=GRAPH_SIZES))
    groups = submit_all(world)
    world.run()
    check(world, groups, plain)


@pytest.mark.parametrize("captured", [False, True])
def test_one_that_fails_ends_its_request_and_no_other(llama: Subject, plain: list[int], captured: bool) -> None:
    links = {"uplink": CpuUplink(), "downlink": CpuDownlink(), "capturer": CpuCapturer()}
    runner = partial(GraphRunner, **links, sizes=GRAPH_SIZES) if captured else ModelRunner
    world = new_world(llama, make_runner=runner)
    refused = world.submit(PROMPTS[1], max_tokens=NUM_TOKENS, extra_args={"chain": "x"})
    late = world.submit(PROMPTS[2], max_tokens=NUM_TOKENS, extra_args={"fail_after": 5})
    groups = submit_all(world)
    world.run()
    failed = set(world.failed)
    world.failures.clear()
    check(world, groups, plain)
    assert failed == {refused, late}
    assert (world.row_failures[refused].code, world.row_failures[refused].message) == (3, "chain is no integer")
    assert (world.row_failures[late].code, len(output(late))) == (13, 5)


@pytest.fixture(scope="module")
def grammars(model: Path) -> Iterator[Grammars]:
    grammars = Grammars(num_threads=1)
    grammars.open(VocabularySource((model / "tokenizer.json").read_text(), VOCAB_SIZE, (0,)))
    yield grammars
    grammars.close()


def test_grammars_hold_beside_them(llama: Subject, plain: list[int], grammars: Grammars, model: Path) -> None:
    decode = Tokenizer.from_file(str(model / "tokenizer.json"))
    world = new_world(llama, grammars=grammars)
    groups = submit_all(world)
    outputs = StructuredOutputs(regex="[ab]{5,9}c")
    constrained = {"structured_outputs": outputs, "grammar": grammar_name(outputs), "eos_token_ids": (0,)}
    free = world.submit(PROMPTS[0], max_tokens=40, seed=1, **constrained)
    # A processor and a grammar that leave nothing together.
    torn = world.submit(PROMPTS[0], max_tokens=40, seed=1, extra_args={"chain": 1}, **constrained)
    world.run()
    failed = set(world.failed)
    world.failures.clear()
    check(world, groups, plain)
    text = decode.decode(output(free))
    assert text.strip("ab") == "c"
    assert failed == {torn}
