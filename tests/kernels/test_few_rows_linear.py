"""Products of few rows against their reference, on the GPU if there is one, else in Triton's interpreter; and the table
of the products that they serve.
"""

import json
from dataclasses import asdict
from itertools import pairwise

import pytest
import torch
from interpreter import HAS_GPU, run_in_interpreter, runs_kernels, starts_interpreter
from pagewire_kernels.few_rows_linear import few_rows_linear, reference, tiles_by_rows
from pagewire_kernels.tuning import few_rows_linear as tuning
from pagewire_kernels.tuning.few_rows_linear import TORCH, FewRowsConfig, FewRowsTile, HopperTile, Tile, few_rows_config

DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if HAS_GPU else [])]
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
TENSOR_CORES = FewRowsTile(tensor_cores=True, block_n=16, block_k=32, num_warps=4, num_stages=3, early_release=False)
THREADS = FewRowsTile(tensor_cores=False, block_n=8, block_k=64, num_warps=2, num_stages=3, early_release=False)
HOPPER = HopperTile(rows=32, block_n=64, splits=2, num_warps=4, num_stages=4, panels=1)
TILES = [(1, THREADS), (1, TENSOR_CORES), (3, TENSOR_CORES), (8, TENSOR_CORES), (9, TENSOR_CORES), (16, TENSOR_CORES)]


@starts_interpreter
def test_the_kernel_agrees_with_its_reference_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    run_in_interpreter(__file__)


def inputs(num_rows: int, height: int, width: int, dtype: torch.dtype, has_bias: bool) -> list[torch.Tensor | None]:
    """x as a slice of something wider, whose other elements are NaN; the weight between NaN too."""
    generator = torch.Generator().manual_seed(height)
    around = torch.full((num_rows, width + 8), float("nan"))
    around[:, :width] = torch.randn(num_rows, width, generator=generator)
    walls = torch.full(((height + 2) * width,), float("nan"))
    walls[width : (height + 1) * width] = torch.randn(height * width, generator=generator) * width**-0.5
    bias = torch.randn(height, generator=generator).to(DEVICE, dtype) if has_bias else None
    weight = walls.to(DEVICE, dtype)[width : (height + 1) * width].view(height, width)
    return [around.to(DEVICE, dtype)[:, :width], weight, bias]


def error(out: torch.Tensor, tensors: list[torch.Tensor | None], gated: bool) -> float:
    exact = [None if tensor is None else tensor.double() for tensor in tensors]
    expected = reference.few_rows_linear(*exact, gated)  # type: ignore[arg-type]
    return float((out.double() - expected).norm() / expected.norm())


@runs_kernels
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize(("num_rows", "tile"), TILES, ids=str)
@pytest.mark.parametrize(("height", "width"), [(2, 1), (34, 96), (46, 147)], ids=str)
def test_rows_are_multiplied(
    height: int, width: int, num_rows: int, tile: FewRowsTile, gated: bool, dtype: torch.dtype
) -> None:
    from pagewire_kernels.few_rows_linear import triton as kernel

    # An odd half: the last program has columns that are none.
    tensors = inputs(num_rows, height, width, dtype, has_bias=height == 46)
    out = kernel.few_rows_linear(*tensors, gated, tile)
    assert out.dtype is dtype
    assert out.shape == (num_rows, height // 2 if gated else height)
    assert error(out, tensors, gated) <= TOLERANCES[dtype]


@runs_kernels
def test_what_the_kernel_does_not_take_is_refused() -> None:
    from pagewire_kernels.few_rows_linear import triton as kernel

    x, weight, _ = inputs(17, 8, 16, torch.float32, False)
    assert x is not None
    assert weight is not None
    for rows, tile in ((17, None), (2, THREADS)):
        with pytest.raises(ValueError, match="more than the kernel takes"):
            kernel.few_rows_linear(x[:rows], weight, None, False, tile)
    with pytest.raises(ValueError, match="must be contiguous"):
        kernel.few_rows_linear(x[:2, ::2], weight[:, :8], None, False)
    for wrong, bias, gated in ((weight.view(16, 8), None, False), (weight, weight[0], False), (weight[:7], None, True)):
        with pytest.raises(ValueError, match="do not fit together"):
            kernel.few_rows_linear(x[:2], wrong, bias, gated)
    assert kernel.few_rows_linear(x[:0], weight, None, False).shape == (0, 8)


@runs_kernels
@pytest.mark.skipif(not HAS_GPU, reason="the interpreter has one order")
@pytest.mark.parametrize(("num_rows", "tile"), TILES, ids=str)
def test_a_product_is_the_same_every_time(num_rows: int, tile: FewRowsTile) -> None:
    x, weight, _ = inputs(num_rows, 4096, 4096, torch.bfloat16, False)
    assert x is not None
    assert weight is not None
    products = [few_rows_linear(x, weight, tile=tile) for _ in range(20)]
    assert all(torch.equal(left, right) for left, right in pairwise(products))


def entry(height: int, width: int, max_rows: int, tile: Tile | None, *, gated: bool = False) -> dict[str, object]:
    """As the file would give it back."""
    key = {"gpu": 90, "element_bytes": 2, "gated": gated, "max_rows": max_rows}
    config = asdict(FewRowsConfig(tile))
    read: dict[str, object] = json.loads(json.dumps({**key, "weight_rows": height, "weight_columns": width, **config}))
    return read


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of 4096 x 4096 by threads, up to 16 by tensor cores, up to 32 by the kernel for Hopper; torch for one row
    of a weight that is a little higher."""
    entries = [
        entry(4096, 4096, 32, HOPPER),
        entry(4096, 4096, 16, TENSOR_CORES),
        entry(4096, 4096, 1, THREADS),
        entry(5120, 4096, 1, None),
        entry(20_000, 4096, 1, THREADS, gated=True),
    ]
    monkeypatch.setattr(tuning, "_entries", lambda: entries)
    few_rows_config.cache_clear()
    yield
    few_rows_config.cache_clear()


@pytest.mark.usefixtures("table")
def test_the_table_serves_weights_like_those_measured() -> None:
    assert few_rows_config(90, 2, False, 1, 4096, 4096) == FewRowsConfig(THREADS)
    assert few_rows_config(90, 2, False, 2, 4096, 4096) == FewRowsConfig(TENSOR_CORES)
    assert few_rows_config(90, 2, False, 17, 4096, 4096) == FewRowsConfig(HOPPER)
    assert few_rows_config(90, 2, False, 1, 4352, 4096) == FewRowsConfig(THREADS)
    assert few_rows_config(90, 2, True, 1, 20_000, 4096) == FewRowsConfig(THREADS)


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    "key",
    [
        (90, 2, False, 1, 4800, 4096),  # Nearer to where torch was faster.
        (90, 2, False, 1, 2048, 4096),
        (90, 2, False, 1, 4096, 14_336),
        (90, 2, False, 33, 4096, 4096),
        (90, 2, True, 1, 4096, 4096),
        (90, 4, False, 1, 4096, 4096),
        (100, 2, False, 1, 4096, 4096),
    ],
    ids=str,
)
def test_what_was_not_measured_is_torchs(key: tuple[int, int, bool, int, int, int]) -> None:
    assert few_rows_config(*key) == TORCH


def test_a_cpu_has_no_tiles() -> None:
    assert tiles_by_rows(torch.zeros(4096, 4096, dtype=torch.bfloat16)) == ()


@pytest.mark.parametrize("gated", [False, True])
def test_a_cpu_computes_what_torch_does(gated: bool) -> None:
    x, weight, bias = torch.randn(3, 8), torch.randn(6, 8), torch.randn(6)
    y = torch.nn.functional.linear(x, weight, bias)
    expected = torch.nn.functional.silu(y[:, :3]) * y[:, 3:] if gated else y
    torch.testing.assert_close(few_rows_linear(x, weight, bias, gated=gated), expected)
