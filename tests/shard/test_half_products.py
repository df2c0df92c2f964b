"""Which products serve half-precision weights on a CPU."""

from collections.abc import Iterator

import pytest
import torch
from pagewire_kernels.packed_linear import has_instructions
from pagewire_shard.layers import half_products, precision
from pagewire_shard.layers.half_products import ROWS, choose, measure
from pagewire_shard.layers.linear import (
    Float16PackedLinear,
    Linear,
    OneDnnBfloat16Linear,
    PackedLinear,
    float16_packed_linear,
    has_onednn,
    packed_bfloat16_linear,
)
from pagewire_shard.layers.precision import resolve_precision

CPU = torch.device("cpu")
FACTORIES = {"AVX512-BF16": packed_bfloat16_linear, "AMX": OneDnnBfloat16Linear}


@pytest.fixture
def _fresh() -> Iterator[None]:
    half_products.half_products.cache_clear()
    yield
    half_products.half_products.cache_clear()


def times(*seconds: float) -> dict[int, float]:
    return dict(zip(ROWS, seconds, strict=True))


def test_the_fastest_is_chosen_over_all_numbers_of_rows() -> None:
    slow, fast, faster = times(1, 4, 16), times(1, 2, 8), times(1.2, 1, 2)
    chosen = choose(FACTORIES, {"float16": slow, "AVX512-BF16": fast, "AMX": faster})
    assert (chosen.name, chosen.dtype, chosen.factory) == ("AMX", torch.bfloat16, OneDnnBfloat16Linear)
    assert "1, 16, 64 rows: 0.83, 4.00, 8.00 times as fast" in chosen.reason


def test_a_small_gain_is_not_worth_rounding_activations() -> None:
    close = times(0.9, 3.7, 15)
    chosen = choose(FACTORIES, {"float16": times(1, 4, 16), "AVX512-BF16": close, "AMX": close})
    assert (chosen.dtype, chosen.factory) == (torch.float16, float16_packed_linear)


@pytest.mark.usefixtures("_fresh")
def test_a_processor_without_instructions_for_bfloat16_packs_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_products, "_contenders", dict)
    resolved = resolve_precision(CPU, "bfloat16", "bfloat16")
    assert (resolved.name, resolved.linear_factory) == ("float16", float16_packed_linear)
    assert (resolved.linear_weights, resolved.tables) == (torch.float32, torch.bfloat16)
    assert "neither AVX512-BF16 nor AMX" in resolved.summary


def test_amx_is_no_contender_where_torch_lacks_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        raise AttributeError("torch.ops.mkldnn has no _reorder_linear_weight")

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(half_products, "OneDnnBfloat16Linear", lacking)
    monkeypatch.setattr(half_products, "has_onednn", lambda: False, raising=False)
    assert "AMX" not in half_products._contenders()


@pytest.mark.skipif(not has_instructions(torch.bfloat16), reason="needs AVX512-BF16")
@pytest.mark.parametrize(
    ("dtype", "checkpoint"), [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("bfloat16", None)]
)
def test_bfloat16_weights_are_multiplied_as_such_where_it_is_faster(
    dtype: precision.Dtype, checkpoint: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = choose(
        {"AVX512-BF16": packed_bfloat16_linear}, {"float16": times(2, 2, 2), "AVX512-BF16": times(1, 1, 1)}
    )
    monkeypatch.setattr(precision, "half_products", lambda: measured)
    resolved = resolve_precision(CPU, dtype, checkpoint)
    assert (resolved.name, resolved.activations, resolved.tables) == ("bfloat16", torch.float32, torch.bfloat16)
    assert isinstance(resolved.linear_factory(torch.eye(4).bfloat16(), None), PackedLinear)
    assert "2.00, 2.00, 2.00 times as fast" in resolved.summary


@pytest.mark.parametrize(
    ("dtype", "checkpoint"),
    [("auto", "float16"), ("auto", "bfloat16"), ("float16", "bfloat16"), ("float16", "float32")],
)
def test_products_are_exact_unless_bfloat16_is_asked_for(
    dtype: precision.Dtype, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_asked() -> half_products.HalfProducts:
        raise AssertionError("nothing is to be measured")

    monkeypatch.setattr(precision, "half_products", not_asked)
    resolved = resolve_precision(CPU, dtype, checkpoint)
    assert (resolved.name, resolved.linear_factory) == ("float16", float16_packed_linear)


@pytest.mark.usefixtures("_fresh")
def test_what_is_measured_is_one_of_the_contenders() -> None:
    chosen = half_products.half_products()
    assert chosen.factory in (float16_packed_linear, *half_products._contenders().values())
    assert half_products.half_products() is chosen
    seconds = measure({"float16": Float16PackedLinear})
    assert all(0 < seconds["float16"][rows] < 1 for rows in ROWS)


@pytest.mark.skipif(not has_onednn(), reason="this build of torch has no oneDNN")
@pytest.mark.parametrize("biased", [False, True])
def test_onednn_multiplies_bfloat16(biased: bool) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(96, 200).bfloat16(), torch.randn(96) if biased else None
    linear = OneDnnBfloat16Linear(weight, bias)
    for num_rows in (1, 2, 17):
        x = torch.randn(num_rows, 200)
        expected = torch.nn.functional.linear(x.bfloat16().float(), weight.float(), bias)
        torch.testing.assert_close(linear(x), expected, rtol=2e-2, atol=2e-2)
        assert linear(x).dtype is torch.float32
