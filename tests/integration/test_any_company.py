"""On a CPU a request gets the same bits in any company: tokens and log-probabilities do not depend on what runs beside
it, on how its prompt is cut up, on what the prefix cache holds, or on what it lost on the way."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from model_world import CPU, ModelWorld
from pagewire.v1 import shard_pb2
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_router.scheduling.sequence import SequenceGroup
from pagewire_shard.config import Dtype
from pagewire_shard.loading.model_loader import load_model
from pagewire_shard.models.decoder import Decoder
from random_models import random_model
from scheduling_world import output

VOCAB_SIZE = 320
PROMPT_LEN = 213
NUM_TOKENS = 24
PREFIX_LEN = 130
"""Long enough that attention walks the keys in several strips, and that a prefix ends inside a block."""
GREEDY = {"temperature": 0.0, "logprobs": 4, "max_tokens": NUM_TOKENS}
ALLOWED = [token for token in range(VOCAB_SIZE) if token % 4]
SAMPLED = {
    "temperature": 0.9, "top_p": 0.9, "top_k": 200, "min_p": 0.001, "seed": 5, "max_tokens": NUM_TOKENS,
    "presence_penalty": 0.3, "frequency_penalty": 0.2, "repetition_penalty": 1.1, "logprobs": VOCAB_SIZE,
    "min_tokens": 8, "stop_token_ids": [2], "logit_bias": dict.fromkeys(range(5, 90, 3), 0.5),
    "allowed_token_ids": ALLOWED, "bad_words": tuple((one, two) for one in ALLOWED[:12] for two in ALLOWED[:10]),
}  # fmt: skip
"""Every stage of sampling, and the log-probabilities of the whole vocabulary."""

Answer = tuple[list[int], list[bytes]]
"""Token ids, and the log-probabilities at each of them."""
Company = Callable[[Decoder], dict[str, Answer]]
"""Runs the request in one company; returns its answers, greedy and sampled."""


def tokens(length: int, seed: int) -> list[int]:
    return torch.randint(VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def _bits(logprobs: shard_pb2.SequenceLogprobs) -> bytes:
    """Everything but the row of the plan."""
    own = shard_pb2.SequenceLogprobs()
    own.CopyFrom(logprobs)
    own.ClearField("run_index")
    return own.SerializeToString()


PROMPT = tokens(PROMPT_LEN, seed=0)
SIBLING = PROMPT[:PREFIX_LEN] + tokens(60, seed=1)
"""A prompt that begins as the request's."""


def make_world(model: Decoder, *, window: int = 2, **limits: int) -> ModelWorld:
    ample = {"num_blocks": 400, "block_size": 16, "max_num_seqs": 32, "max_num_batched_tokens": 512}
    return ModelWorld(model, GroupLimits(**ample | {"max_model_len": 512} | limits), window)


class Watched:
    """The request, submitted greedy and sampled."""

    def __init__(self, world: ModelWorld) -> None:
        self._world = world
        self.groups: dict[str, SequenceGroup] = {}

    def submit(self, name: str) -> None:
        self.groups[name] = self._world.submit(PROMPT, **(GREEDY if name == "greedy" else SAMPLED))

    def answers(self) -> dict[str, Answer]:
        """Runs what is left; returns the answers by name."""
        self._world.run()
        logprobs = self._world.logprobs
        return {
            name: (output(group), [_bits(entry) for entry in logprobs[group.sequences[0]]])
            for name, group in self.groups.items()
        }


def beside(
    num_others: int, *, steps_before: int = 0, window: int = 2, others_last: bool = False, **limits: int
) -> Company:
    """The request, twice, with num_others that have run for some steps when it comes, or that come after it."""

    def run(model: Decoder) -> dict[str, Answer]:
        world = make_world(model, window=window, **limits)
        watched = Watched(world)
        if others_last:
            watched.submit("greedy")
        for index in range(num_others):
            # Some end long before the request does, some go on after it.
            world.submit(tokens(1 + 37 * index % 300, seed=100 + index), temperature=0.5, max_tokens=1 + 9 * index % 60)
        for _ in range(steps_before):
            world.step()
        if not others_last:
            watched.submit("greedy")
        watched.submit("sampled")
        return watched.answers()

    return run


def alone(model: Decoder) -> dict[str, Answer]:
    answers = {}
    for name in ("greedy", "sampled"):
        watched = Watched(make_world(model))
        watched.submit(name)
        answers |= watched.answers()
    return answers


def after(*prompts: list[int], evict: bool = False) -> Company:
    """The request when others have left their blocks in the prefix cache, or when later ones have pushed those out."""

    def run(model: Decoder) -> dict[str, Answer]:
        world = make_world(model, num_blocks=40)
        for prompt in prompts:
            world.submit(prompt, temperature=0.0, max_tokens=10)
            world.run()
        if evict:
            for index in range(4):
                world.submit(tokens(400, seed=50 + index), temperature=0.0, max_tokens=2)
                world.run()
        answers = {}
        for name in ("greedy", "sampled"):
            watched = Watched(world)
            watched.submit(name)
            answers |= watched.answers()
            if name == "greedy":
                cached = 0 if evict else max(shared_blocks(prompt) for prompt in prompts) * 16
                assert watched.groups[name].num_cached_tokens == cached
        return answers

    return run


def shared_blocks(prompt: list[int]) -> int:
    """Blocks of 16 tokens at the start of the request's prompt that are this one's too; the last token is computed."""
    same = next((i for i, (a, b) in enumerate(zip(PROMPT, prompt, strict=False)) if a != b), PROMPT_LEN - 1)
    return same // 16


def with_siblings(model: Decoder) -> dict[str, Answer]:
    """Requests with a common prefix come in the same plan."""
    world = make_world(model)
    watched = Watched(world)
    for prompt in (SIBLING, PROMPT, SIBLING[:-7]):
        world.submit(prompt, temperature=0.7, max_tokens=40)
    watched.submit("greedy")
    watched.submit("sampled")
    return watched.answers()


def preempted(model: Decoder) -> dict[str, Answer]:
    """The pool is too small for what others grow to, so that the request loses its blocks: the greedy one in one size
    of the pool, the sampled one in another."""
    answers, resumed = {}, set()
    for num_blocks in (20, 22, 24):
        world = make_world(model, num_blocks=num_blocks)
        for seed in (7, 8):
            world.submit(tokens(20, seed=seed), temperature=0.5, max_tokens=120)
        for _ in range(8):
            world.step()
        watched = Watched(world)
        watched.submit("sampled")
        watched.submit("greedy")
        found = watched.answers()
        mine = {name for name, group in watched.groups.items() if group.num_resumed_tokens is not None}
        answers |= {name: found[name] for name in mine - resumed}
        resumed |= mine
    assert resumed == {"greedy", "sampled"}, f"only {resumed} were preempted"
    return answers


COMPANIES: dict[str, Company] = {
    "alone": alone,
    "its twin": beside(0),
    "one other": beside(1),
    "three others": beside(3),
    "eight others": beside(8),
    "thirty others": beside(30),
    "others that come later": beside(6, others_last=True),
    "others that are decoding": beside(5, steps_before=8),
    "others that are in the middle of their prompts": beside(9, steps_before=2, max_num_batched_tokens=64),
    "one token at a time": beside(0, max_num_batched_tokens=2),
    "chunks of 7": beside(2, max_num_batched_tokens=7),
    "chunks of 64": beside(2, max_num_batched_tokens=64),
    "chunks of 100 beside many": beside(12, max_num_batched_tokens=100),
    "blocks of 8": beside(2, block_size=8),
    "blocks of 64": beside(2, block_size=64, num_blocks=100),
    "one plan in flight": beside(4, window=1),
    "four plans in flight": beside(4, window=4),
    "a sibling's prefix in the cache": after(SIBLING),
    "its own prompt in the cache": after(PROMPT),
    "its own prompt evicted from the cache": after(PROMPT, evict=True),
    "siblings in the same plan": with_siblings,
    "preempted": preempted,
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer with a dense block, whose down projection reads more features than the kernel takes in one go, and one
    with a mixture of experts."""
    config = transformers.Qwen3MoeConfig(
        vocab_size=VOCAB_SIZE, hidden_size=192, intermediate_size=1088, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=512, moe_intermediate_size=96, num_experts=4,
        num_experts_per_tok=2, norm_topk_prob=True, mlp_only_layers=[0], rope_theta=1e4,
    )  # fmt: skip
    model = random_model(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            # Logits then differ by little, so that a bit is enough to change a token.
            parameter.data *= 0.25
    directory = tmp_path_factory.mktemp("company")
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16"])
def model(directory: Path, request: pytest.FixtureRequest) -> Decoder:
    dtype: Dtype = request.param
    return load_model(directory, device=CPU, dtype=dtype).model


@pytest.fixture(scope="module")
def expected(model: Decoder) -> dict[str, Answer]:
    return alone(model)


@pytest.mark.parametrize("company", COMPANIES)
def test_a_request_gets_the_same_bits_in_any_company(model: Decoder, expected: dict[str, Answer], company: str) -> None:
    answers = COMPANIES[company](model)
    for name, (token_ids, logprobs) in expected.items():
        assert len(token_ids) == len(logprobs) == NUM_TOKENS
        assert answers[name][0] == token_ids, name
        assert answers[name][1] == logprobs, name


@pytest.mark.parametrize("name", ["greedy", "sampled"])
def test_tokens_are_the_same_without_log_probabilities(model: Decoder, expected: dict[str, Answer], name: str) -> None:
    world = make_world(model)
    group = world.submit(PROMPT, **{**(GREEDY if name == "greedy" else SAMPLED), "logprobs": None})
    world.run()
    assert output(group) == expected[name][0]
