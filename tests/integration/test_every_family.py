"""Every family as test_models.py configures it, through scheduler and engine: the tokens that transformers chooses.

Prompts are computed in chunks, in blocks of 8 and 16, with and without a cached prefix, with n = 2, and in a pool so
small that sequences are preempted. Layers with a window have tables of their own where that takes less. By default only
families run that have attention or experts of a kind of their own.
"""

from dataclasses import dataclass, replace

import pytest
from model_world import CPU, ModelWorld
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_router.scheduling.sequence import SequenceGroup
from pagewire_shard.layers.cache_layout import plan_layout
from pagewire_shard.loading.model_loader import load_model
from pagewire_shard.models.decoder import Decoder
from reference_model import Comparison, ReferenceModel
from scheduling_world import make_request, output

from tests.shard.test_models import CASES, random_model, random_prompts

NUM_TOKENS = 32
MAX_LEN = 64
CHUNK = 7
BY_DEFAULT = {"gemma2", "gemma3", "gemma4", "gpt-oss", "apertus"}


@dataclass(frozen=True)
class Family:
    """The same weights in transformers and here."""

    name: str
    reference: ReferenceModel
    model: Decoder

    def world(self, block_size: int, num_blocks: int | None = None) -> ModelWorld:
        """num_blocks: None: what the largest request takes alone."""
        limits = GroupLimits(
            num_blocks=num_blocks or 0,
            block_size=block_size,
            max_num_seqs=8,
            max_num_batched_tokens=CHUNK,
            max_model_len=MAX_LEN,
            groups=plan_layout(self.model.spec.layers, MAX_LEN).groups,
        )
        if num_blocks is None:
            requests = [make_request(prompt, max_tokens=NUM_TOKENS, n=n) for prompt, n in numbered_prompts()]
            limits = replace(limits, num_blocks=max(map(limits.num_blocks_alone, requests)))
        return ModelWorld(self.model, limits, 2)

    def run(self, world: ModelWorld, num_copies: int = 1) -> list[SequenceGroup]:
        """Runs all prompts at once, so many times each, one of them with n = 2, and checks every token."""
        prompts = numbered_prompts() * num_copies
        groups = [world.submit(prompt, temperature=0.0, max_tokens=NUM_TOKENS, n=n) for prompt, n in prompts]
        world.run()
        comparison = Comparison()
        for (prompt, _), group in zip(prompts, groups, strict=True):
            for sequence in group.sequences:
                tokens = output(group, sequence.index)
                assert len(tokens) == NUM_TOKENS
                comparison.check(self.reference.greedy_after(prompt, tokens), tokens, self.name)
        return groups


def numbered_prompts() -> list[tuple[list[int], int]]:
    """Prompts, and how many answers are asked for."""
    *others, last = random_prompts()
    return [*((prompt, 1) for prompt in others), (last, 2)]


@pytest.fixture(
    scope="module",
    params=[name if name in BY_DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in CASES],
)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    directory = tmp_path_factory.mktemp(request.param)
    reference = random_model(CASES[request.param])
    reference.save_pretrained(directory)
    model = load_model(directory, device=CPU, dtype="float32").model
    return Family(request.param, ReferenceModel(reference), model)


@pytest.mark.parametrize("block_size", [8, 16])
def test_chunks_and_cached_prefixes_yield_the_same(family: Family, block_size: int) -> None:
    world = family.world(block_size, num_blocks=128)
    family.run(world)
    cached = family.run(world)
    assert max(group.num_cached_tokens for group in cached) > 0


@pytest.mark.parametrize("block_size", [8, 16])
def test_preemption_changes_nothing(family: Family, block_size: int) -> None:
    world = family.world(block_size)
    # A sequence within its window grows no more, so it takes many short ones to fill the pool.
    family.run(world, num_copies=4)
    assert world.scheduler.num_preemptions > 0
