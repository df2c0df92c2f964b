"""The kernels of Mamba-2's recurrence for GPUs against the reference in float64: on the GPU if there is one, else in
Triton's interpreter, in a process of its own.

Memory that torch.empty gives holds NaN here, so that an element which a kernel forgets is noticed.
"""

from dataclasses import replace

import pytest
import torch
from interpreter import HAS_GPU, run_in_interpreter, runs_kernels, starts_interpreter
from mamba2_batches import in_float64, mamba2_inputs
from pagewire_kernels.mamba2 import Mamba2Inputs, reference

DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
TOLERANCES = {torch.float32: 2e-5, torch.float16: 5e-3, **({torch.bfloat16: 3e-2} if HAS_GPU else {})}
SHAPES = [(1, 16, 1, 16), (6, 5, 3, 7), (2, 64, 1, 128), (3, 80, 1, 24)]
"""num_heads, head_dim, num_groups, state_size."""

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.slow
@starts_interpreter
def test_kernels_agree_with_the_reference_in_the_interpreter() -> None:
    run_in_interpreter(__file__)


def check(inputs: Mamba2Inputs, tolerance: float | None = None) -> None:
    """Compares outputs and every slot: those that no sequence writes stay as they are."""
    from pagewire_kernels.mamba2.triton import mamba2

    expected_inputs = in_float64(inputs)
    expected = reference.mamba2(expected_inputs)
    out = mamba2(inputs)
    assert out.dtype is inputs.x.dtype
    num_tokens, tolerance = int(inputs.query_start_loc[-1]), tolerance or TOLERANCES[inputs.x.dtype]
    close = {"atol": tolerance * float(expected.abs().nan_to_num().max()), "rtol": tolerance}
    torch.testing.assert_close(out[:num_tokens].cpu().double(), expected[:num_tokens], **close)
    torch.testing.assert_close(inputs.state.cpu().double(), expected_inputs.state, equal_nan=True, **close)


@runs_kernels
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_decodes_and_prompts_of_any_shape(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    query_lens = [1, 1, 1, 1, 70, 0, 64, 2]
    check(mamba2_inputs(query_lens, *shape, dtype=dtype, device=DEVICE, num_decodes=4, gated=True, padding=2))


@runs_kernels
@pytest.mark.parametrize("query_lens", [[1, 1, 1], [130, 1, 1, 200]], ids=str)
def test_decodes_or_prompts_alone(query_lens: list[int]) -> None:
    check(mamba2_inputs(query_lens, device=DEVICE, max_query_len=max(query_lens)))


@runs_kernels
def test_steps_stay_within_limits() -> None:
    check(mamba2_inputs([1, 9, 70], device=DEVICE, dt_min=0.1, dt_max=0.3, num_decodes=1))


@runs_kernels
def test_long_and_short_steps() -> None:
    inputs = mamba2_inputs([1, 9, 70], device=DEVICE, num_decodes=1)
    check(replace(inputs, dt=inputs.dt * 40, decay=-torch.logspace(-4, 2, 4, device=DEVICE)), tolerance=2e-4)


@runs_kernels
@pytest.mark.parametrize("num_decodes", [0, 1, 3])
def test_counts_that_only_the_device_knows(num_decodes: int) -> None:
    """As a captured step calls it: shapes are the most there can be, the last sequences are empty."""
    query_lens = [1] * num_decodes + [5, 70]
    row_counts = torch.tensor([len(query_lens), num_decodes], device=DEVICE)
    check(mamba2_inputs([*query_lens, 0, 0], device=DEVICE, padding=6, row_counts=row_counts))


@runs_kernels
def test_slots_may_lie_apart() -> None:
    inputs = mamba2_inputs([1, 20, 3], device=DEVICE, num_decodes=1)
    pages = torch.full((len(inputs.state), 4 * 8 * 16 + 40), torch.nan, device=DEVICE)
    pages[:, : 4 * 8 * 16] = inputs.state.flatten(1)
    check(replace(inputs, state=pages[:, : 4 * 8 * 16].unflatten(1, (4, 8, 16))))
