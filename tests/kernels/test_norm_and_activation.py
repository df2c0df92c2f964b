"""Norms and gated activations against their references, and those against transformers."""

import pytest
import torch
import torch.nn.functional as F
from pagewire_kernels.activation import gelu_and_mul, sigmoid, silu_and_mul, xielu
from pagewire_kernels.cpu.elementwise import silu_
from pagewire_kernels.gated_rms_norm import gated_rms_norm
from pagewire_kernels.gated_rms_norm import reference as gated_rms_norm_reference
from pagewire_kernels.layer_norm import layer_norm
from pagewire_kernels.rms_norm import reference, rms_norm

SHAPES = [(1, 7), (3, 64), (5, 768), (300, 96)]


@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm(shape):
    x, weight = torch.randn(shape), torch.randn(shape[-1])
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm_adds_the_residual_and_leaves_its_inputs(shape):
    x, residual, weight = torch.randn(shape), torch.randn(shape), torch.randn(shape[-1])
    inputs = (x.clone(), residual.clone())
    out, total = rms_norm(x, weight, 1e-6, residual)
    expected, expected_total = reference.rms_norm(x, weight, 1e-6, residual)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(total, expected_total)
    assert torch.equal(x, inputs[0])
    assert torch.equal(residual, inputs[1])


def test_rms_norm_of_each_head_of_a_projection():
    query = torch.randn(9, 4 * 32 + 64)[:, : 4 * 32].unflatten(1, (4, 32))
    weight = torch.randn(32)
    out = rms_norm(query, weight, 1e-6)
    torch.testing.assert_close(out, reference.rms_norm(query, weight, 1e-6), atol=1e-5, rtol=1e-5)
    assert out.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_is_that_of_transformers(dtype):
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm = LlamaRMSNorm(48, eps=1e-5).to(dtype)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(6, 48, dtype=dtype)
    assert torch.equal(reference.rms_norm(x, norm.weight, 1e-5), norm(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_with_a_float32_weight_is_gemmas(dtype):
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

    norm = Gemma2RMSNorm(48, eps=1e-6).to(dtype)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(6, 48, dtype=dtype)
    assert torch.equal(reference.rms_norm(x, 1.0 + norm.weight.float(), 1e-6), norm(x))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize(("num_tokens", "width", "group_size", "has_one_weight"), [
    (1, 7, 7, False), (5, 96, 24, False), (300, 40, 8, True), (3, 5000, 5000, True)
])  # fmt: skip
def test_gated_rms_norm(num_tokens, width, group_size, has_one_weight, norm_first, poisoned_memory):
    x, gate = torch.randn(num_tokens, width + 3)[:, :width], torch.randn(num_tokens, width + 9)[:, 9:]
    weight = torch.randn(group_size if has_one_weight else width)
    out = gated_rms_norm(x, gate, weight, 1e-5, group_size, norm_first=norm_first)
    doubles = (x.double(), gate.double(), weight.double())
    expected = gated_rms_norm_reference.gated_rms_norm(*doubles, 1e-5, group_size, norm_first)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    assert out.is_contiguous()


def test_gated_rms_norm_is_that_of_transformers():
    from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1RMSNormGated
    from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated

    x, gate = torch.randn(6, 48), torch.randn(6, 48)
    after = MambaRMSNormGated(48, group_size=16, eps=1e-5)
    before = FalconH1RMSNormGated(48, eps=1e-5, n_groups=3, norm_before_gate=True)
    for norm, norm_first in ((after, False), (before, True)):
        torch.nn.init.normal_(norm.weight)
        out = gated_rms_norm(x, gate, norm.weight.detach(), 1e-5, 16, norm_first=norm_first)
        torch.testing.assert_close(out, norm(x, gate), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("width", "weight"), [(40, 40), (48, 32)])
def test_gated_rms_norm_refuses_what_does_not_fit(width, weight):
    with pytest.raises(ValueError, match="do not fit"):
        gated_rms_norm(torch.ones(2, width), torch.ones(2, width), torch.ones(weight), 1e-5, 16, norm_first=True)


def test_layer_norm():
    x, weight, bias = torch.randn(4, 30), torch.randn(30), torch.randn(30)
    expected = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt() * weight
    torch.testing.assert_close(layer_norm(x, weight, None, 1e-5), expected)
    torch.testing.assert_close(layer_norm(x, weight, bias, 1e-5), expected + bias)


@pytest.mark.parametrize("size", [1, 5, 64, 2048])
@pytest.mark.parametrize("magnitude", [1.0, 50.0])
def test_gated_activations(size, magnitude):
    x = torch.randn(7, 2 * size) * magnitude
    gate, up = x.chunk(2, dim=1)
    tolerance = {"atol": 1e-6 * magnitude**2, "rtol": 1e-5}
    torch.testing.assert_close(silu_and_mul(x), F.silu(gate) * up, **tolerance)
    torch.testing.assert_close(gelu_and_mul(x), F.gelu(gate) * up, **tolerance)
    torch.testing.assert_close(gelu_and_mul(x, "tanh"), F.gelu(gate, approximate="tanh") * up, **tolerance)


@pytest.mark.parametrize(("function", "expected"), [(sigmoid, torch.sigmoid), (silu_, F.silu)])
def test_an_element_has_the_same_bits_wherever_it_is(function, expected):
    """torch's functions fail this: the last elements of a tensor, which fill no vector, are computed in another way."""
    x = torch.cat((torch.randn(5000) * 4, torch.tensor([-200.0, 200.0, 0.0])))
    out = function(x.clone())
    torch.testing.assert_close(out, expected(x), atol=1e-6, rtol=1e-6)
    for size in (1, 3, 16, 19):
        assert torch.equal(torch.cat([function(part.clone()) for part in x[:2000].split(size)]), out[:2000])


def test_sigmoid_takes_any_layout_and_leaves_its_input():
    x = torch.randn(7, 6, 5)
    before = x.clone()
    torch.testing.assert_close(sigmoid(x[:, 1:3]), torch.sigmoid(x[:, 1:3]), atol=1e-6, rtol=1e-6)
    assert torch.equal(x, before)


def test_xielu_is_that_of_transformers():
    from transformers.activations import XIELUActivation

    activation = XIELUActivation(alpha_p_init=0.9, alpha_n_init=1.3, dtype=torch.float32)
    x = torch.cat([torch.randn(7, 40) * 10, torch.randn(7, 40) * 1e-3], 1)
    slopes = torch.tensor([0.9, 1.3])
    torch.testing.assert_close(xielu(x, slopes), activation(x).detach(), atol=1e-5, rtol=1e-5)


def test_activation_saturates_without_overflow():
    x = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4, 1.0, 1.0, 1.0, 1.0, 1.0]])
    expected = torch.tensor([[0.0, 0.0, 0.0, 100.0, 1e4]])
    torch.testing.assert_close(silu_and_mul(x), expected)
    torch.testing.assert_close(gelu_and_mul(x, "tanh"), expected)
