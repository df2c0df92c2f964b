"""Models with layers that keep a state of each sequence (LFM2, Qwen3-Next), as generate() of transformers has them."""

from pathlib import Path
from typing import Any

import pytest
import transformers
from cluster import shards_and_router
from model_world import CPU, ModelWorld
from pagewire import Client, SamplingParams
from pagewire_common.cache_groups import CacheGroup
from pagewire_router.scheduling.sequence import SequenceGroup
from pagewire_shard.loading.model_loader import load_model
from random_models import MAX_LEN, VOCAB_SIZE, random_model, random_prompts, write_model
from reference_model import Comparison, ReferenceModel
from scheduling_world import output
from subject import NUM_TOKENS, PROMPT_LENS, Subject

from tests.integration.test_step_graphs import forbid_eager_steps, with_graphs

CONFIG: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LEN,
    "block_multiple_of": 8,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
SLOW = ("attention-free", "delta-net")
LAYER_TYPES = {"hybrid": ["conv", "full_attention", "conv", "conv"], "attention-free": ["conv"] * 4}


def delta_net() -> transformers.PretrainedConfig:
    """A model of gated delta nets, attention and experts."""
    return transformers.Qwen3NextConfig(
        **{name: value for name, value in CONFIG.items() if name != "block_multiple_of"},
        head_dim=16,
        linear_key_head_dim=12,
        linear_value_head_dim=10,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=20,
        shared_expert_intermediate_size=24,
    )


@pytest.fixture(scope="module", params=["hybrid", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    directory = tmp_path_factory.mktemp(request.param)
    layer_types = LAYER_TYPES.get(request.param)
    model = random_model(transformers.Lfm2Config(**CONFIG, layer_types=layer_types) if layer_types else delta_net())
    model.save_pretrained(directory)
    if request.param == "attention-free":
        model.generation_config.use_cache = False  # transformers' cache asks a layer with attention for its length.
    reference = ReferenceModel(model)
    greedy = [reference.generate(prompt, NUM_TOKENS) for prompt in random_prompts(PROMPT_LENS)]
    return Subject(request.param, reference, load_model(Path(directory), device=CPU, dtype="float32").model, greedy)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return Comparison()


def submit(world: ModelWorld, subject: Subject, **options: object) -> list[SequenceGroup]:
    return [world.submit(e.prompt, temperature=0.0, max_tokens=NUM_TOKENS, **options) for e in subject.greedy]


def check(comparison: Comparison, subject: Subject, groups: list[SequenceGroup], how: str) -> None:
    for one, group in zip(subject.greedy, groups, strict=True):
        for sequence in group.sequences:
            comparison.check(one, output(group, sequence.index), f"prompt of {len(one.prompt)}, {how}")


@pytest.mark.parametrize(("block_size", "chunk"), [(3, 7), pytest.param(16, 512, marks=pytest.mark.slow)])
def test_a_batch_yields_what_generate_yields_and_again_from_checkpoints(
    subject: Subject, comparison: Comparison, block_size: int, chunk: int
) -> None:
    groups = (CacheGroup(), CacheGroup(0, 0, 64))
    world = subject.world(block_size=block_size, max_num_batched_tokens=chunk, num_blocks=2000, groups=groups)
    for how in ("first", "cached"):
        requests = submit(world, subject)
        world.run()
        check(comparison, subject, requests, f"{how}, blocks of {block_size}, chunks of {chunk}")
    assert [group.num_cached_tokens for group in requests] == [(n - 1) // block_size * block_size for n in PROMPT_LENS]


def test_a_pool_that_preempts_all_the_time_changes_nothing(subject: Subject, comparison: Comparison) -> None:
    world = subject.world(block_size=4, max_num_batched_tokens=16, num_blocks=23)
    requests = submit(world, subject)
    world.run()
    check(comparison, subject, requests, "preempted")
    assert world.scheduler.num_preemptions > 0


@pytest.mark.parametrize("num_blocks", [pytest.param(500, marks=pytest.mark.slow), 35])
def test_parallel_samples_begin_with_the_prompts_state(
    subject: Subject, comparison: Comparison, num_blocks: int
) -> None:
    world = subject.world(block_size=4, max_num_batched_tokens=16, num_blocks=num_blocks, window=3)
    requests = submit(world, subject, n=2)
    world.run()
    check(comparison, subject, requests, f"n=2, {num_blocks} blocks")


@pytest.mark.parametrize("sizes", [(16,), pytest.param((1, 3), marks=pytest.mark.slow)])
def test_padded_steps_leave_no_state_behind(subject: Subject, comparison: Comparison, sizes: tuple[int, ...]) -> None:
    """What is captured on a GPU. Sizes up to 3 leave most steps to the plain runner."""
    world = subject.world(make_runner=with_graphs(*sizes), num_blocks=200, block_size=4)
    if sizes[-1] == 16:
        forbid_eager_steps(world)
    for how in ("first", "cached"):
        requests = submit(world, subject)
        world.run()
        check(comparison, subject, requests, f"graphs of {sizes} rows, {how}")


def test_log_probabilities_are_the_same_alone_and_in_a_batch_and_from_a_checkpoint(subject: Subject) -> None:
    """Bit by bit, in float32."""
    options = {"temperature": 0.0, "max_tokens": NUM_TOKENS, "logprobs": 1}

    def logprobs(world: ModelWorld, groups: list[SequenceGroup]) -> list[list[float]]:
        world.run()
        return [[entry.logprob for entry in world.logprobs[group.sequences[0]]] for group in groups]

    alone = []
    for expected in subject.greedy:
        world = subject.world()
        alone += logprobs(world, [world.submit(expected.prompt, **options)])
    world = subject.world(max_num_batched_tokens=32)
    batched, cached = (logprobs(world, [world.submit(e.prompt, **options) for e in subject.greedy]) for _ in range(2))
    assert batched == alone
    assert cached == alone


def test_hardly_any_choice_was_a_near_tie(comparison: Comparison) -> None:
    """Last of those that compare: counts what they accepted."""
    assert comparison.num_near_ties <= comparison.num_tokens // 1000


@pytest.mark.slow
def test_the_service_counts_cached_tokens_up_to_checkpoints(tmp_path: Path) -> None:
    model = write_model(
        tmp_path, transformers.Lfm2Config(**CONFIG | {"vocab_size": 400}, layer_types=LAYER_TYPES["hybrid"])
    )
    [common] = random_prompts((60,), seed=4)
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    with (
        shards_and_router(
            model, "--block-size", "8", "--max-num-batched-tokens", "32", "--max-num-seqs", "4"
        ) as cluster,
        Client(cluster.address, timeout_s=120) as client,
    ):
        answers = [
            client.complete({"prompt_token_ids": [*common[:50], *end]}, params)
            for end in ([1] * 20, [2] * 20, [3] * 20, [1] * 20)
        ]
        cluster.check_all_blocks_come_back()
    assert [answer.num_cached_tokens for answer in answers] == [0, 0, 48, 64]
    assert answers[0].outputs[0].token_ids == answers[-1].outputs[0].token_ids
