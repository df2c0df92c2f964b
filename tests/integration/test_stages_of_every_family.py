"""Every family in two stages, through scheduler and engines: the tokens that transformers chooses.

As test_every_family.py, with a plan in flight more than there are stages. On a CPU what is captured on a GPU is called.
"""

from dataclasses import dataclass, replace
from functools import partial

import pytest
from model_world import CPU, MakeRunner
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_shard.execution.gpu_runner import GraphRunner
from pagewire_shard.execution.graph_capture import CpuCapturer
from pagewire_shard.execution.graph_sizes import GraphSizes
from pagewire_shard.execution.host_transfer import CpuDownlink, CpuUplink
from pagewire_shard.execution.model_runner import ModelRunner
from pagewire_shard.loading.model_loader import load_model
from pagewire_shard.models.decoder import Decoder
from pagewire_shard.parallel.stage import Stage
from reference_model import ReferenceModel
from scheduling_world import make_request
from staged_model import StagedModelWorld, layout_of

from tests.integration.test_every_family import CHUNK, MAX_LEN, NUM_TOKENS, Family, numbered_prompts
from tests.shard.test_models import CASES, random_model

GRAPHS = partial(
    GraphRunner,
    uplink=CpuUplink(),
    downlink=CpuDownlink(),
    capturer=CpuCapturer(),
    sizes=GraphSizes((1, 2, 8), ((4, 2), (8, 8))),
)


@dataclass(frozen=True)
class StagedFamily(Family):
    """The model in two stages."""

    stages: tuple[Decoder, Decoder]

    def staged_world(self, make_runner: MakeRunner, num_blocks: int | None = None) -> StagedModelWorld:
        """num_blocks: None: what the largest request takes alone."""
        limits = GroupLimits(
            num_blocks=num_blocks or 0,
            block_size=8,
            max_num_seqs=8,
            max_num_batched_tokens=CHUNK,
            max_model_len=MAX_LEN,
        )
        limits = replace(limits, groups=layout_of(self.stages[0], limits).groups)
        if num_blocks is None:
            requests = [make_request(prompt, max_tokens=NUM_TOKENS, n=n) for prompt, n in numbered_prompts()]
            limits = replace(limits, num_blocks=max(map(limits.num_blocks_alone, requests)))
        return StagedModelWorld(list(self.stages), limits, make_runner)


@pytest.fixture(
    scope="module",
    params=["gpt-oss", *(pytest.param(name, marks=pytest.mark.slow) for name in CASES if name != "gpt-oss")],
)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StagedFamily:
    directory = tmp_path_factory.mktemp(request.param)
    reference = random_model(CASES[request.param])
    reference.save_pretrained(directory)
    first, last = (load_model(directory, device=CPU, dtype="float32", stage=Stage(i, 2)).model for i in range(2))
    return StagedFamily(request.param, ReferenceModel(reference), first, (first, last))


@pytest.mark.parametrize(
    "make_runner", [pytest.param(ModelRunner, id="eager", marks=pytest.mark.slow), pytest.param(GRAPHS, id="graphs")]
)
def test_chunks_and_cached_prefixes_yield_the_same(family: StagedFamily, make_runner: MakeRunner) -> None:
    world = family.staged_world(make_runner, num_blocks=128)
    family.run(world)  # type: ignore[arg-type]
    cached = family.run(world)  # type: ignore[arg-type]
    assert max(group.num_cached_tokens for group in cached) > 0


@pytest.mark.slow
@pytest.mark.parametrize("make_runner", [ModelRunner, GRAPHS], ids=["eager", "graphs"])
def test_preemption_changes_nothing(family: StagedFamily, make_runner: MakeRunner) -> None:
    world = family.staged_world(make_runner)
    family.run(world, num_copies=4)  # type: ignore[arg-type]
    assert world.scheduler.num_preemptions > 0
