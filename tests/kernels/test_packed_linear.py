"""Products with packed weights on a CPU: against the reference, and independent of what else is in the batch."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pagewire_kernels.cpu import threads
from pagewire_kernels.packed_linear import has_instructions, pack, packed_linear, reference, unpack

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(1, 1), (7, 33), (200, 96), (64, 5), (128, 4100), (256, 48)]
"""One column, half a pair of panels, features that are no whole pair or vector, more features than a block of steps."""


def inputs(num_rows: int, in_features: int) -> torch.Tensor:
    """Rows that are not contiguous in memory."""
    torch.manual_seed(1)
    return torch.randn(num_rows, 2 * in_features)[:, ::2]


@pytest.fixture(params=[1, 3])
def _num_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    threads.set_num_threads(request.param)
    yield
    threads.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out_features", "in_features"), SHAPES)
def test_unpacking_returns_what_was_packed(dtype: torch.dtype, out_features: int, in_features: int) -> None:
    weight = torch.randn(out_features, in_features)
    packed = pack(weight, dtype)
    assert torch.equal(unpack(packed), weight.to(dtype))
    assert (packed.out_features, packed.in_features) == (out_features, in_features)


@pytest.mark.usefixtures("_num_threads")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("activation", [None, "silu", "gelu_tanh"])
@pytest.mark.parametrize(("out_features", "in_features"), SHAPES)
def test_packed_linear_is_its_reference(
    dtype: torch.dtype, biased: bool, activation: str | None, out_features: int, in_features: int
) -> None:
    torch.manual_seed(0)
    weight = pack(torch.randn(out_features, in_features) / in_features**0.5, dtype)
    if activation is not None and not weight.can_be_gated:
        pytest.skip("the halves of these columns are no whole panels")
    bias = torch.randn(out_features) if biased else None
    for num_rows in (0, 1, 5, 97):
        x = inputs(num_rows, in_features)
        expected = reference.packed_linear(x, weight, bias, activation)
        result = packed_linear(x, weight, bias, activation)
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
        assert result.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, "silu"])
def test_a_row_has_the_same_bits_alone_and_beside_others(dtype: torch.dtype, activation: str | None) -> None:
    if not has_instructions(dtype):
        pytest.skip("the reference makes no such promise")
    torch.manual_seed(0)
    weight = pack(torch.randn(128, 4100) * 0.02, dtype)
    x = inputs(130, 4100)
    whole = packed_linear(x, weight, None, activation)
    for num_rows in (*range(1, 15), 24, 95, 96, 97, 129):
        assert torch.equal(packed_linear(x[:num_rows], weight, None, activation), whole[:num_rows])
        assert torch.equal(packed_linear(x[-num_rows:], weight, None, activation), whole[-num_rows:])
    with threads.one_thread():
        assert torch.equal(packed_linear(x, weight, None, activation), whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_value_that_is_not_a_number_stays_in_its_row(dtype: torch.dtype) -> None:
    weight, x = pack(torch.randn(70, 40), dtype), inputs(3, 40).clone()
    x[1, 7] = float("nan")
    x[2, 3] = float("inf")
    y = packed_linear(x, weight)
    assert y[0].isfinite().all()
    assert y[1].isnan().all()
    assert not y[2].isfinite().any()


@pytest.mark.skipif(not has_instructions(torch.bfloat16), reason="needs AVX512-BF16")
def test_inputs_are_rounded_to_the_nearest_bfloat16() -> None:
    x = torch.randn(5, 64) * torch.logspace(-20, 20, 64)
    identity = pack(torch.eye(64), torch.bfloat16)
    assert torch.equal(packed_linear(x, identity), x.bfloat16().float())


@pytest.mark.skipif(not has_instructions(torch.float32), reason="needs AVX-512")
def test_inputs_that_do_not_fit_are_refused() -> None:
    weight = pack(torch.zeros(64, 32), torch.float32)
    for wrong in (torch.zeros(2, 31), torch.zeros(2, 32).double(), torch.zeros(32)):
        with pytest.raises(ValueError, match="x must be float32"):
            packed_linear(wrong, weight)


def test_one_thread_is_left_as_it_was_entered() -> None:
    before = torch.get_num_threads(), threads.get_num_threads()
    with threads.one_thread():
        assert (torch.get_num_threads(), threads.get_num_threads()) == (1, 1)
    assert (torch.get_num_threads(), threads.get_num_threads()) == before


@pytest.mark.parametrize("features", [{"NUMBA_CPU_NAME": "generic"}, {"NUMBA_CPU_FEATURES": "+avx2,+fma"}])
def test_no_instructions_are_used_that_numba_is_told_not_to_use(features: dict[str, str], tmp_path: Path) -> None:
    script = (
        "import torch; from pagewire_kernels.packed_linear import *;"
        "print(has_instructions(torch.float32), has_instructions(torch.bfloat16));"
        "packed_linear(torch.ones(2, 8), pack(torch.ones(64, 8), torch.bfloat16))"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), **features}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "False False\n"), result.stderr
