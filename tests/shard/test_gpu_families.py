"""Every family of test_models.py on a GPU, in float32, with graphs and without: the tokens that transformers chooses.

Prompts are computed in chunks beside decodes, then once more from cached prefixes.
"""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
import transformers
from model_world import MakeRunner, ModelWorld
from packaging.version import Version
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_shard.execution.graph_sizes import GraphSizes
from pagewire_shard.layers.cache_layout import plan_layout
from pagewire_shard.loading.model_loader import load_model
from pagewire_shard.models.decoder import Decoder
from reference_model import Comparison, ReferenceModel
from scheduling_world import output

from tests.shard.test_models import CASES, random_model, random_prompts

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CUDA = torch.device("cuda", 0)
SIZES = GraphSizes((1, 2, 4), ((8, 4), (16, 4)))
NUM_TOKENS = 24
MAX_LEN = 64
FLOAT32_TIE = 1e-3
MENDED = {"gpt-oss", "gpt-oss-no-biases-rope-of-its-own", "minimax-m2", "mamba2", "bamba", "granite-hybrid"}
"""Families that transformers computes as their checkpoints say since 5.23."""
IS_OLD = Version(transformers.__version__) < Version("5.23")


@dataclass(frozen=True)
class Family:
    """The same weights in transformers and here, on the GPU."""

    name: str
    reference: ReferenceModel
    model: Decoder

    def world(self, sizes: GraphSizes | None) -> ModelWorld:
        from pagewire_shard.execution.gpu_runner import gpu_runner

        limits = GroupLimits(
            num_blocks=256,
            block_size=16,
            max_num_seqs=4,
            max_num_batched_tokens=16,
            max_model_len=MAX_LEN,
            groups=plan_layout(self.model.spec.layers, MAX_LEN).groups,
        )
        make_runner: MakeRunner = partial(gpu_runner, sizes=sizes)
        return ModelWorld(self.model, limits, 2, make_runner=make_runner, device=CUDA)


@pytest.fixture(scope="module", params=[name for name in CASES if not (IS_OLD and name in MENDED)])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    directory = tmp_path_factory.mktemp(request.param)
    reference = random_model(CASES[request.param])
    reference.save_pretrained(directory)
    model = load_model(directory, device=CUDA, dtype="float32").model
    return Family(request.param, ReferenceModel(reference.to(CUDA)), model)


@pytest.mark.parametrize("sizes", [SIZES, None], ids=["graphs", "no-graphs"])
def test_tokens_are_those_of_transformers(family: Family, sizes: GraphSizes | None) -> None:
    world, comparison, prompts = family.world(sizes), Comparison(FLOAT32_TIE), random_prompts()
    for how in ("first", "from cached prefixes"):
        groups = [world.submit(prompt, temperature=0.0, max_tokens=NUM_TOKENS) for prompt in prompts]
        world.run()
        for prompt, group in zip(prompts, groups, strict=True):
            tokens = output(group)
            assert len(tokens) == NUM_TOKENS
            comparison.check(family.reference.greedy_after(prompt, tokens), tokens, f"{family.name}, {how}")
