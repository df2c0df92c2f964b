"""Log-probabilities of prompts on a GPU: from the hidden states that a captured pass leaves, and without graphs."""

import pytest
import torch
from pagewire_router.scheduling.sequence import SequenceGroup
from pagewire_shard.execution.graph_sizes import GraphSizes
from prompt_scoring import check_prompt_scores
from reference_model import Comparison
from scheduling_world import output
from subject import Subject, subject

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CUDA = torch.device("cuda", 0)
SIZES = GraphSizes((1, 2, 4, 8, 16), ((8, 8), (24, 4), (32, 16), (128, 16), (512, 16)))
ATOL = 1e-3
"""Two float32 implementations on a GPU add up in different orders."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject("llama", tmp_path_factory.mktemp("llama"), CUDA)


@pytest.mark.parametrize("sizes", [SIZES, None], ids=["graphs", "no-graphs"])
@pytest.mark.parametrize(("num_blocks", "max_num_batched_tokens"), [(256, 512), (8, 24)])
def test_they_are_the_reference_models_own(
    llama: Subject, sizes: GraphSizes | None, num_blocks: int, max_num_batched_tokens: int
) -> None:
    """In one chunk and in several, beside requests that ask for none, and on a pool that is too small for all."""
    from pagewire_shard.execution.gpu_runner import gpu_runner

    def make_runner(*args: object) -> object:
        return gpu_runner(*args, sizes)  # type: ignore[arg-type]

    limits = {"num_blocks": num_blocks, "block_size": 16, "max_num_batched_tokens": max_num_batched_tokens}
    world = llama.world(make_runner=make_runner, **limits)
    comparison = Comparison(ATOL)
    for _ in range(2):
        options = {"temperature": 0.0, "max_tokens": 8}
        groups: list[SequenceGroup] = [
            world.submit(expected.prompt, prompt_logprobs=num, **options)
            for expected, num in zip(llama.greedy, (0, 1, 5, 20, 3, 2), strict=True)
        ]
        beside = [world.submit(expected.prompt, **options) for expected in llama.greedy]
        world.run()
        for group in groups:
            check_prompt_scores(llama, world, group, ATOL)
        for expected, *both in zip(llama.greedy, groups, beside, strict=True):
            for group in both:
                assert len(output(group)) == 8
                comparison.check(expected, [*output(group), *expected.tokens[8:]], "beside")
