"""The kernels of the gated delta rule for GPUs against the reference in float64, on a GPU or in Triton's interpreter.

Every float of torch.empty is NaN, so that an element which a kernel does not write is noticed.
"""

from dataclasses import replace

import pytest
import torch
from delta_batches import delta_inputs, expected
from interpreter import HAS_GPU, run_in_interpreter, runs_kernels, starts_interpreter
from pagewire_kernels.gated_delta_net import DeltaInputs

pytest.importorskip("triton")
TOLERANCES = {torch.float32: 2e-5, torch.float16: 1e-2, **({torch.bfloat16: 8e-2} if HAS_GPU else {})}
SHAPES = [
    *[(1, 1, 16, 16), (2, 2, 16, 32), (3, 1, 24, 40), (1, 3, 7, 5), (2, 2, 32, 16)],
    *[(2, 2, 64, 64), (2, 2, 128, 128), (1, 1, 96, 192)],
]
"""num_key_heads, group_size, key_dim, value_dim."""
DEVICE = "cuda" if HAS_GPU else "cpu"


@pytest.mark.slow
@starts_interpreter
def test_kernels_agree_with_the_reference_in_the_interpreter() -> None:
    run_in_interpreter(__file__)


def run(inputs: DeltaInputs, tolerance: float | None = None) -> None:
    """Compares all but rows of padding."""
    from pagewire_kernels.gated_delta_net.triton import gated_delta_net

    num_tokens = int(inputs.query_start_loc[-1])
    out, state = expected(inputs)
    placed = on_device(inputs)
    found = gated_delta_net(placed)[:num_tokens].cpu()
    tolerance = tolerance or TOLERANCES[inputs.query.dtype]
    torch.testing.assert_close(found.double(), out[:num_tokens], atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(placed.state.cpu().double(), state, atol=tolerance, rtol=tolerance, equal_nan=True)


def on_device(inputs: DeltaInputs) -> DeltaInputs:
    if not HAS_GPU:
        return replace(inputs, state=inputs.state.clone())
    tensors = {name: getattr(inputs, name) for name in inputs.__slots__}
    return replace(
        inputs, **{name: each.to(DEVICE) for name, each in tensors.items() if isinstance(each, torch.Tensor)}
    )


@runs_kernels
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("shape", SHAPES)
def test_prompts_and_decodes_of_any_shape(
    shape: tuple[int, int, int, int], dtype: torch.dtype, poisoned_memory: None
) -> None:
    run(delta_inputs([1, 1, 9, 70, 130], *shape, num_decodes=2, dtype=dtype))
    run(delta_inputs([1, 1, 1], *shape, num_decodes=3, dtype=dtype))


@runs_kernels
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 128, 200])
def test_chunks_that_end_anywhere(length: int, poisoned_memory: None) -> None:
    run(delta_inputs([length, 3, length]))


@runs_kernels
def test_states_may_be_written_where_they_were_read(poisoned_memory: None) -> None:
    run(delta_inputs([1, 1, 5, 100, 64], num_decodes=2, in_place=True))


@runs_kernels
def test_sequences_without_tokens_keep_their_slots(poisoned_memory: None) -> None:
    run(delta_inputs([1, 0, 70, 0, 0, 3, 0], num_decodes=1))


@runs_kernels
def test_keys_that_repeat_and_hardly_decay(poisoned_memory: None) -> None:
    """The matrix of a chunk is then far from the unit matrix: sums of its powers would cancel."""
    run(delta_inputs([150], same_keys=True, beta_scale=2.0), tolerance=2e-4)
    run(delta_inputs([150], same_keys=True), tolerance=2e-4)


@runs_kernels
@pytest.mark.parametrize("num_decodes", [0, 1, 3])
def test_counts_that_only_the_device_knows(num_decodes: int, poisoned_memory: None) -> None:
    """As a captured step calls it: shapes are the most there can be, the last sequences are empty."""
    query_lens = [1] * num_decodes + [5, 20, 70]
    inputs = delta_inputs([*query_lens, 0, 0])
    padded = {
        name: torch.nn.functional.pad(getattr(inputs, name), (0, 0) * (getattr(inputs, name).dim() - 1) + (0, 6))
        for name in ("query", "key", "value", "gate", "beta_logits", "decay_logits")
    }
    run(replace(inputs, **padded, row_counts=torch.tensor([len(query_lens), num_decodes])))


@runs_kernels
def test_an_empty_batch(poisoned_memory: None) -> None:
    run(delta_inputs([]))
    run(delta_inputs([0, 0]))
