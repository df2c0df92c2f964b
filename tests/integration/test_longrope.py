"""Rotary embeddings that depend on how long a sequence may become: Phi-3's longrope.

Sequences that stay short are computed with the short factors, others with the long ones from their first token on, and
the two share no blocks.
"""

from pathlib import Path

import pytest
from model_world import CPU, ModelWorld
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_shard.loading.model_loader import load_model
from reference_model import Comparison, ReferenceModel
from scheduling_world import output

from tests.shard.test_models import CASES, random_model, random_prompts

LONGEST_SHORT = 22


@pytest.fixture(scope="module")
def reference() -> ReferenceModel:
    return ReferenceModel(random_model(CASES["phi3-longrope"]))


@pytest.fixture
def world(reference: ReferenceModel, tmp_path: Path) -> ModelWorld:
    reference.model.save_pretrained(tmp_path)
    model = load_model(tmp_path, device=CPU, dtype="float32").model
    assert model.spec.longest_short == LONGEST_SHORT
    limits = GroupLimits(num_blocks=64, block_size=4, max_num_seqs=8, max_num_batched_tokens=7, max_model_len=64)
    return ModelWorld(model, limits, 2)


def test_short_and_long_sequences_of_one_prompt_are_each_as_transformers_has_them(
    world: ModelWorld, reference: ReferenceModel
) -> None:
    """transformers computes all tokens anew with the long factors when a sequence becomes long."""
    prompt = random_prompts()[2] + [5]
    comparison, num_cached, num_guessed = Comparison(), [], []
    # The last token that is sampled is not computed.
    for max_tokens in (LONGEST_SHORT + 1 - len(prompt), LONGEST_SHORT + 2 - len(prompt), 30):
        for n in (1, 2):
            group = world.submit(prompt, temperature=0.0, max_tokens=max_tokens, n=n)
            world.run()
            num_cached.append(group.num_cached_tokens)
            num_guessed.append(group.sequences[0].num_guessed_tokens)
            for sequence in group.sequences:
                tokens = output(group, sequence.index)
                assert len(tokens) == max_tokens
                comparison.check(reference.greedy_after(prompt, tokens), tokens, f"{max_tokens} tokens")
    assert num_cached == num_guessed == [0, 8, 0, 8, 8, 8]


def test_prompts_of_any_length_in_one_batch(world: ModelWorld, reference: ReferenceModel) -> None:
    comparison = Comparison()
    prompts = random_prompts()
    groups = [world.submit(prompt, temperature=0.0, max_tokens=12) for prompt in prompts]
    world.run()
    for prompt, group in zip(prompts, groups, strict=True):
        tokens = output(group, 0)
        comparison.check(reference.greedy_after(prompt, tokens), tokens, f"prompt of {len(prompt)}")
