"""Every family parted into stages against transformers: the stages of a pipeline run one after the other here, each
with its layers and caches, alone or shared out among ranks that are threads."""

from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from pagewire_shard.errors import BadOption
from pagewire_shard.layers.forward_batch import ForwardBatch, KVCache
from pagewire_shard.loading.model_loader import LoadedModel, load_model
from pagewire_shard.models.decoder import Decoder
from pagewire_shard.parallel.collectives import Collectives
from pagewire_shard.parallel.stage import Stage, stage_bounds
from thread_ranks import on_all_ranks

from tests.shard.test_models import CASES, LLAMA, random_model, random_prompts
from tests.shard.test_tensor_parallel import SIZES, continued

CPU = torch.device("cpu")
TWO_STAGES = ("gpt-oss", "gpt2")
"""Cases of the default suite: windows, sinks, experts; learned positions, tied embeddings."""


class Stages:
    """The stages of one decoder, as a decoder."""

    def __init__(self, models: list[Decoder]) -> None:
        self.spec = self
        self.models = models
        self.longest_short = models[0].spec.longest_short
        assert len({model.spec.longest_short for model in models}) == 1

    def allocate_caches(self, *args: object, **options: object) -> list[KVCache]:
        return [cache for model in self.models for cache in model.spec.allocate_caches(*args, **options)]  # type: ignore[arg-type]

    def forward(self, batch: ForwardBatch, caches: list[KVCache]) -> torch.Tensor:
        left, message = list(caches), None
        for model in self.models:
            own, left = left[: len(model.spec.layers)], left[len(model.spec.layers) :]
            message = model.forward(batch, own, message)
        assert message is not None
        return message

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.models[-1].compute_logits(hidden)


def load_stages(
    directory: Path, count: int, collectives: Collectives | None = None, load_format: str = "auto"
) -> list[LoadedModel]:
    return [
        load_model(
            directory,
            device=CPU,
            dtype="float32",
            load_format=load_format,  # type: ignore[arg-type]
            collectives=collectives,
            stage=Stage(index, count),
        )
        for index in range(count)
    ]


def check_equals_transformers(case: str, num_ranks: int, num_stages: int, directory: Path) -> None:
    reference = random_model(CASES[case])
    reference.save_pretrained(directory)

    def run(collectives: Collectives) -> tuple[list[torch.Tensor], list[list[int]]]:
        stages = load_stages(directory, num_stages, None if num_ranks == 1 else collectives)
        return continued(Stages([stage.model for stage in stages]), chunk=7)  # type: ignore[arg-type]

    logits, new = on_all_ranks(num_ranks, run)[0]
    for index, prompt in enumerate(random_prompts()):
        tokens = torch.tensor([prompt + new[index]])
        with torch.no_grad():
            expected = reference(tokens).logits[0]
        torch.testing.assert_close(logits[index], expected[: len(prompt)], rtol=1e-4, atol=1e-4)
        assert tokens[0, len(prompt) :].tolist() == expected[len(prompt) - 1 : -1].argmax(1).tolist()


@pytest.mark.parametrize("case", TWO_STAGES)
def test_two_stages_equal_transformers(case: str, tmp_path: Path) -> None:
    check_equals_transformers(case, 1, 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_family_in_stages_equals_transformers(case: str, tmp_path: Path) -> None:
    check_equals_transformers(case, 1, 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "num_ranks"), [(case, SIZES.get(case, (2,))[0]) for case in CASES])
def test_every_family_in_stages_of_ranks_equals_transformers(case: str, num_ranks: int, tmp_path: Path) -> None:
    check_equals_transformers(case, num_ranks, 2, tmp_path)


def test_dummy_weights_are_the_same_model_in_any_number_of_stages(tmp_path: Path) -> None:
    config = LLAMA | {"num_hidden_layers": 3, "tie_word_embeddings": True}
    transformers.LlamaConfig(**config, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    logits = []
    for count in (1, 2, 3):
        models = [stage.model for stage in load_stages(tmp_path, count, load_format="dummy")]
        logits.append(continued(Stages(models), chunk=64)[0])  # type: ignore[arg-type]
    for others in logits[1:]:
        for alone, parted in zip(logits[0], others, strict=True):
            assert torch.equal(alone, parted)


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_stage_holds_its_share_of_the_weights(is_tied: bool, tmp_path: Path) -> None:
    transformers.LlamaConfig(
        vocab_size=1000,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=16,
        num_attention_heads=4,
        tie_word_embeddings=is_tied,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(tmp_path)
    (whole,) = load_stages(tmp_path, 1, load_format="dummy")
    first, last = load_stages(tmp_path, 2, load_format="dummy")
    copied = 1000 * 128 * 4 if is_tied else 0  # The output projection of the last stage is a table of its own.
    assert max(first.weight_bytes, last.weight_bytes) <= (whole.weight_bytes + copied) / 2 * 1.05
    assert {"lm_head", "final_norm"}.isdisjoint(first.model.spec.parameters())


def test_more_stages_than_layers_are_refused(tmp_path: Path) -> None:
    transformers.LlamaConfig(**LLAMA, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    with pytest.raises(BadOption, match=r"size 5: LlamaForCausalLM: its 2 layers make 2 stages at most$"):
        load_stages(tmp_path, 5, load_format="dummy")


@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=7),
    ends=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    count=st.integers(2, 4),
    is_cut=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_layers_are_shared_out_as_evenly_as_can_be(
    sizes: list[int], ends: tuple[int, int], count: int, is_cut: list[bool]
) -> None:
    cuts = [cut for cut in range(1, len(sizes)) if is_cut[cut - 1]]

    def most(bounds: list[int]) -> int:
        held = [sum(sizes[first:end]) for first, end in pairwise(bounds)]
        held[0], held[-1] = held[0] + ends[0], held[-1] + ends[1]
        return max(held)

    every = [[0, *chosen, len(sizes)] for chosen in combinations(cuts, count - 1)]
    bounds = stage_bounds(sizes, *ends, cuts, count)
    if not every:
        assert bounds is None
        return
    assert bounds in every
    assert most(bounds) == min(map(most, every))
