"""Mamba-2's recurrence on the CPU against its reference in float64, and the reference against attention-like sums."""

from dataclasses import replace

import pytest
import torch
from mamba2_batches import in_float64, mamba2_inputs
from pagewire_kernels.mamba2 import Mamba2Inputs, mamba2, reference

SHAPES = [(1, 16, 1, 16), (4, 8, 2, 16), (6, 5, 3, 7), (2, 64, 1, 128), (3, 1, 3, 1)]
"""num_heads, head_dim, num_groups, state_size."""
pytestmark = pytest.mark.usefixtures("poisoned_memory")


def check(inputs: Mamba2Inputs) -> None:
    """Compares outputs and every slot: those that no sequence writes stay as they are."""
    expected_inputs = in_float64(inputs)
    expected = reference.mamba2(expected_inputs)
    out = mamba2(inputs)
    assert out.is_contiguous()
    num_tokens = int(inputs.query_start_loc[-1])
    close = {"atol": 1e-6 * float(expected.abs().nan_to_num().max()), "rtol": 1e-5}
    torch.testing.assert_close(out[:num_tokens].double(), expected[:num_tokens], **close)
    torch.testing.assert_close(inputs.state.double(), expected_inputs.state, equal_nan=True, **close)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_mixed_batch_of_any_shape(shape: tuple[int, int, int, int], gated: bool) -> None:
    check(mamba2_inputs([1, 1, 1, 7, 70, 0, 0, 2, 33], *shape, num_decodes=3, gated=gated, padding=2))


def test_steps_stay_within_limits() -> None:
    check(mamba2_inputs([1, 9, 30], dt_min=0.1, dt_max=0.3))


def test_long_steps_are_not_rounded_away() -> None:
    inputs = mamba2_inputs([1, 9, 30])
    check(replace(inputs, dt=inputs.dt * 40, decay=-torch.logspace(-4, 2, 4)))


def test_a_prompt_has_the_same_bits_however_it_is_cut_up() -> None:
    inputs = mamba2_inputs([100], read_slots=torch.tensor([-1], dtype=torch.int32))
    whole, last = mamba2(inputs), inputs.state[inputs.write_slots].clone()
    for chunk in (1, 3, 64):
        read_slots = torch.tensor([-1], dtype=torch.int32)
        for first in range(0, 100, chunk):
            end = min(first + chunk, 100)
            part = replace(
                inputs,
                **{name: getattr(inputs, name)[first:end] for name in ("x", "dt", "b", "c")},
                read_slots=read_slots,
                query_start_loc=torch.tensor([0, end - first], dtype=torch.int32),
            )
            assert torch.equal(mamba2(part), whole[first:end])
            read_slots = inputs.write_slots
        assert torch.equal(inputs.state[inputs.write_slots], last)


def test_the_recurrence_is_attention_with_decaying_weights() -> None:
    """The other form of the same map: what token i reads of token j is c_i b_j dt_j, decayed by the steps between."""
    inputs = in_float64(mamba2_inputs([20], num_heads=2, num_groups=1, dt_min=0.01))
    inputs.read_slots[:] = -1
    out = reference.mamba2(inputs)
    dt = torch.nn.functional.softplus(inputs.dt + inputs.dt_bias).clamp(min=0.01)
    decayed = (dt * inputs.decay).cumsum(0)  # [20, num_heads]
    weights = torch.einsum("igs,jgs->ij", inputs.c, inputs.b)[..., None] * (decayed[:, None] - decayed).exp() * dt
    weights = weights * torch.ones(20, 20, dtype=torch.float64).tril()[..., None]
    expected = torch.einsum("ijh,jhp->ihp", weights, inputs.x) + inputs.skip[:, None] * inputs.x
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decay": torch.zeros(3)}, "float32"),
        ({"state": torch.zeros(3, 4, 8, 15)}, "slots"),
        ({"c": torch.zeros(9, 2, 17)}, "do not fit"),
        ({"b": torch.zeros(2, 3, 16), "c": torch.zeros(2, 3, 16)}, "3 groups"),
        ({"dt": torch.zeros(2, 4).half()}, "one dtype"),
        ({"gate": torch.zeros(2, 4, 9)}, "gate"),
        ({"x": torch.zeros(2, 8, 4).transpose(1, 2)}, "contiguous"),
    ],
)
def test_what_no_kernel_takes_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mamba2(replace(mamba2_inputs([1, 1]), **change))  # type: ignore[arg-type]
