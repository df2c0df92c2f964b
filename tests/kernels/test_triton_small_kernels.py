"""The Triton kernels of norms, activations, rotation and block copies against their references: on the GPU if there is
one, else in Triton's interpreter, in a process of its own.

Memory that torch.empty gives holds NaN here, so that an element which a kernel forgets is noticed.
"""

import pytest
import torch
from interpreter import HAS_GPU, run_in_interpreter, runs_kernels, starts_interpreter
from pagewire_kernels.activation import reference as activation_reference
from pagewire_kernels.copy_blocks import reference as copy_reference
from pagewire_kernels.gated_rms_norm import reference as gated_rms_norm_reference
from pagewire_kernels.layer_norm import reference as layer_norm_reference
from pagewire_kernels.rms_norm import reference as rms_norm_reference
from pagewire_kernels.rotary_and_cache import RotaryInputs
from pagewire_kernels.rotary_and_cache import reference as rotary_reference

DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if HAS_GPU else [])]
TOLERANCES = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("poisoned_memory")


@starts_interpreter
def test_kernels_agree_with_their_references_in_the_interpreter():
    run_in_interpreter(__file__)


def assert_same(actual, expected, dtype):
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(actual.cpu(), expected, atol=tolerance, rtol=tolerance, equal_nan=True)


def randn(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 7), (5, 64), (37, 96), (3, 2500), (2, 3, 40)], ids=str)
def test_rms_norm(shape, dtype):
    from pagewire_kernels.rms_norm import triton as kernel

    x, weight = randn(*shape, dtype=dtype), randn(shape[-1], dtype=dtype)
    out = kernel.rms_norm(x.to(DEVICE), weight.to(DEVICE), 1e-5)
    assert_same(out, rms_norm_reference.rms_norm(x, weight, 1e-5), dtype)


@runs_kernels
def test_rms_norm_with_a_float32_weight_rounds_once():
    from pagewire_kernels.rms_norm import triton as kernel

    x, residual, weight = randn(37, 96, dtype=torch.float16), randn(37, 96, dtype=torch.float16), 1.0 + randn(96)
    alone = kernel.rms_norm(x.to(DEVICE), weight.to(DEVICE), 1e-6)
    added, _ = kernel.rms_norm(x.to(DEVICE), weight.to(DEVICE), 1e-6, residual.to(DEVICE))
    expected, (expected_added, _) = (rms_norm_reference.rms_norm(x, weight, 1e-6, r) for r in (None, residual))
    # Of what was rounded before it was scaled, a quarter would differ.
    assert (alone.cpu() == expected).float().mean() > 0.98
    assert (added.cpu() == expected_added).float().mean() > 0.98


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize(
    ("width", "group_size", "has_one_weight"), [(96, 24, False), (40, 8, True), (2500, 2500, True)]
)
def test_gated_rms_norm(width, group_size, has_one_weight, norm_first, dtype):
    from pagewire_kernels.gated_rms_norm import triton as kernel

    x, gate = randn(5, width + 3, dtype=dtype)[:, :width], randn(5, width + 9, dtype=dtype)[:, 9:]
    weight = randn(group_size if has_one_weight else width, dtype=dtype)
    tensors = (x.to(DEVICE), gate.to(DEVICE), weight.to(DEVICE))
    out = kernel.gated_rms_norm(*tensors, 1e-5, group_size, norm_first)
    assert_same(out, gated_rms_norm_reference.gated_rms_norm(x, gate, weight, 1e-5, group_size, norm_first), dtype)


@runs_kernels
def test_rms_norm_of_each_head_of_a_projection():
    from pagewire_kernels.rms_norm import triton as kernel

    heads = randn(9, 3 * 24 + 40)[:, : 3 * 24].unflatten(1, (3, 24))
    out = kernel.rms_norm(heads.to(DEVICE), randn(24).to(DEVICE), 1e-6)
    assert out.is_contiguous()
    assert_same(out, rms_norm_reference.rms_norm(heads, randn(24), 1e-6), torch.float32)


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 7), (37, 96), (3, 2500)], ids=str)
def test_rms_norm_adds_the_residual_and_leaves_its_inputs(shape, dtype):
    from pagewire_kernels.rms_norm import triton as kernel

    x, residual, weight = randn(*shape, dtype=dtype), randn(*shape, dtype=dtype) * 3, randn(shape[-1], dtype=dtype)
    inputs = [tensor.to(DEVICE, copy=True) for tensor in (x, residual)]
    out, total = kernel.rms_norm(inputs[0], weight.to(DEVICE), 1e-6, inputs[1])
    expected, expected_total = rms_norm_reference.rms_norm(x, weight, 1e-6, residual)
    assert_same(out, expected, dtype)
    assert torch.equal(total.cpu(), expected_total)
    assert torch.equal(inputs[0].cpu(), x)
    assert torch.equal(inputs[1].cpu(), residual)


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 7), (37, 96), (3, 2500)], ids=str)
def test_layer_norm_with_and_without_a_residual(shape, has_bias, dtype):
    from pagewire_kernels.layer_norm import triton as kernel

    x, residual, weight = randn(*shape, dtype=dtype) + 5, randn(*shape, dtype=dtype) * 3, randn(shape[-1], dtype=dtype)
    bias = randn(shape[-1], dtype=dtype) + 1 if has_bias else None
    on_device = [x.to(DEVICE), weight.to(DEVICE), None if bias is None else bias.to(DEVICE)]
    assert_same(kernel.layer_norm(*on_device, 1e-5), layer_norm_reference.layer_norm(x, weight, bias, 1e-5), dtype)
    out, total = kernel.layer_norm(*on_device, 1e-5, residual.to(DEVICE))
    expected, expected_total = layer_norm_reference.layer_norm(x, weight, bias, 1e-5, residual)
    assert_same(out, expected, dtype)
    assert torch.equal(total.cpu(), expected_total)


@runs_kernels
def test_layer_norm_of_rows_with_a_large_mean():
    from pagewire_kernels.layer_norm import triton as kernel

    x = randn(3, 50) + 1000
    out = kernel.layer_norm(x.to(DEVICE), torch.ones(50, device=DEVICE), None, 1e-5)
    exact = layer_norm_reference.layer_norm(x.double(), torch.ones(50).double(), None, 1e-5)
    torch.testing.assert_close(out.cpu().double(), exact, atol=1e-4, rtol=1e-4)


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize(("num_rows", "width"), [(1, 1), (3, 50), (5, 2500), (70, 8)])
def test_gated_activations(num_rows, width, activation, dtype):
    from pagewire_kernels.activation import triton as kernel

    x = randn(num_rows, 2 * width) * 4
    x[0, 0] = -1e4
    exact = {
        "silu": activation_reference.silu_and_mul,
        "gelu": activation_reference.gelu_and_mul,
        "gelu_tanh": lambda x: activation_reference.gelu_and_mul(x, "tanh"),
    }[activation]
    x = x.to(dtype)
    out = kernel.activate_and_mul(x.to(DEVICE), activation)
    assert out.dtype is dtype
    assert_same(out, exact(x.float()).to(dtype), dtype)


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-3, 0.1, 3.0])
@pytest.mark.parametrize(("num_rows", "width"), [(1, 3), (37, 80), (3, 2500)])
def test_xielu(num_rows, width, scale, dtype):
    from pagewire_kernels.activation import triton as kernel

    # Rows as a slice of something wider.
    x = (randn(num_rows, width + 8) * scale).to(dtype)[:, :width]
    slopes = torch.tensor([0.9, 1.3])
    out = kernel.xielu(x.to(DEVICE), slopes.to(DEVICE))
    assert_same(out, activation_reference.xielu(x, slopes), dtype)


def rotary_inputs(num_tokens, num_heads, num_kv_heads, head_dim, rotary_dim, dtype):
    """Heads as slices of one projection's output, and caches whose every slot holds NaN."""
    projected = randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim, dtype=dtype)
    heads = projected.unflatten(1, (-1, head_dim)).split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    phase = randn(50, rotary_dim // 2) * 6
    generator = torch.Generator().manual_seed(3)
    slots = torch.randperm(64, generator=generator)[:num_tokens]
    slots[num_tokens // 2] = -1
    caches = [torch.full((8, 8, num_kv_heads, head_dim), float("nan"), dtype=dtype) for _ in range(2)]
    positions = torch.randint(0, 50, (num_tokens,), generator=generator)
    return projected, heads, positions, torch.cat([phase.cos(), phase.sin()], dim=1), caches, slots


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [None, "in the heads' dtype", "in float32"])
@pytest.mark.parametrize("interleaved", [False, True], ids=["neox", "interleaved"])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "rotary_dim"),
    [(4, 2, 16, 16), (3, 1, 40, 20), (5, 5, 12, 6), (33, 17, 256, 64)],
)
def test_rotation_and_cache_write(num_heads, num_kv_heads, head_dim, rotary_dim, interleaved, norm, dtype):
    from pagewire_kernels.rotary_and_cache import triton as kernel

    shape = (num_heads, num_kv_heads, head_dim, rotary_dim)
    projected, heads, positions, angles, caches, slots = rotary_inputs(5, *shape, dtype)
    weight_dtype = torch.float32 if norm == "in float32" else dtype
    weights = [randn(head_dim, dtype=weight_dtype) + offset if norm else None for offset in (1, -1)]
    on_device = projected.to(DEVICE, copy=True)
    turned = on_device.unflatten(1, (-1, head_dim)).split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    turned_caches = [cache.to(DEVICE, copy=True) for cache in caches]
    kernel.rotary_and_cache(
        RotaryInputs(
            *turned,
            positions.to(DEVICE),
            angles.to(DEVICE),
            *turned_caches,
            slots.to(DEVICE),
            interleaved,
            *(weight if weight is None else weight.to(DEVICE) for weight in weights),
            1e-5,
        )
    )
    rotary_reference.rotary_and_cache(
        RotaryInputs(*heads, positions, angles, *caches, slots, interleaved, *weights, 1e-5)
    )
    assert_same(turned[0], heads[0], dtype)
    for cache, expected in zip(turned_caches, caches, strict=True):
        assert_same(cache, expected, dtype)


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("block_size", "head_dim"), [(16, 4), (16, 72), (4, 512)])
def test_blocks_are_copied_in_all_layers(block_size, head_dim, dtype):
    from pagewire_kernels.copy_blocks import triton as kernel

    # Of two layers, whose blocks are of different sizes.
    layers = [tuple(randn(6, block_size, n, head_dim, dtype=dtype) * (i + 2) for i in range(2)) for n in (3, 6)]
    copies = torch.tensor([0, 3, 0]), torch.tensor([1, 2, 5])
    on_device = [tuple(cache.to(DEVICE, copy=True) for cache in layer) for layer in layers]
    kernel.copy_blocks(on_device, *(ids.to(DEVICE) for ids in copies))
    copy_reference.copy_blocks(layers, *copies)
    for layer, expected in zip(on_device, layers, strict=True):
        for cache, wanted in zip(layer, expected, strict=True):
            assert torch.equal(cache.cpu(), wanted)


@runs_kernels
def test_blocks_that_cannot_be_copied_in_whole_units_are_refused():
    from pagewire_kernels.copy_blocks import triton as kernel

    ids = torch.tensor([0], device=DEVICE)
    with pytest.raises(ValueError, match="aligned to 16 bytes"):
        kernel.copy_blocks([(randn(2, 1, 1, 3).to(DEVICE), randn(2, 1, 1, 3).to(DEVICE))], ids, ids + 1)
