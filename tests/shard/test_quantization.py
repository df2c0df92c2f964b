"""A quantization scheme: the tensors it names are read from a checkpoint, and its Linear is what the layers run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from pagewire_shard.errors import CorruptWeights
from pagewire_shard.layers.activation import GATED, Activation
from pagewire_shard.layers.linear import Linear
from pagewire_shard.layers.parameter import Parameter, TensorSpec
from pagewire_shard.layers.precision import resolve_precision
from pagewire_shard.layers.weights import Weights
from pagewire_shard.loading.checkpoint import checkpoint_files
from pagewire_shard.loading.model_loader import fill_randomly
from pagewire_shard.loading.weight_reader import read_weights
from pagewire_shard.models.decoder import Decoder
from pagewire_shard.models.hf_config import read_config_fields
from pagewire_shard.models.llama import LLAMA
from safetensors.torch import load_file, save_file

from tests.shard.test_model_loader import CPU, edit_tensors, logits, save

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Int8Linear(Linear):
    """8-bit integers times a scale for each row; gate and activation are one call."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor) -> None:
        self._weight = weight
        self._scale = scale
        self.num_bytes = weight.nbytes + scale.nbytes
        self.gated_with: list[Activation] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self._weight.float()) * self._scale

    def gated(self, activation: Activation) -> Callable[[torch.Tensor], torch.Tensor] | None:
        self.gated_with.append(activation)
        return lambda x: GATED[activation](self(x))


@dataclass(frozen=True)
class Int8Rows:
    """The simplest scheme that stores more than weight and bias."""

    def tensors(self, parameter: Parameter) -> dict[str, TensorSpec]:
        return {
            "weight": TensorSpec(parameter.shape, torch.int8, parameter.parts, dummy=1),
            "weight_scale": TensorSpec((parameter.num_rows,), torch.float32, parameter.parts, dummy=0.01),
        }

    def linear(self, parameter: Parameter, tensors: Mapping[str, torch.Tensor]) -> Linear:
        return Int8Linear(tensors["weight"], tensors["weight_scale"])


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    """A Llama whose projections are 8-bit integers and scales; beside it the same numbers in float32."""
    (tmp_path / "int8").mkdir()
    (tmp_path / "float").mkdir()
    directory = save(tmp_path / "int8", tie_word_embeddings=True)
    integers, floats = {}, {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        if not any(projection in name for projection in PROJECTIONS):
            integers[name] = floats[name] = tensor
            continue
        scale = tensor.abs().amax(1) / 127
        rounded = (tensor / scale[:, None]).round()
        integers[name], integers[f"{name}_scale"] = rounded.to(torch.int8), scale
        floats[name] = rounded * scale[:, None]
    (tmp_path / "float" / "config.json").write_text((directory / "config.json").read_text())
    save_file(floats, tmp_path / "float" / "model.safetensors")
    save_file(integers, directory / "model.safetensors")
    return directory


def load(directory: Path, scheme: Int8Rows | None) -> tuple[Decoder, Weights]:
    spec = LLAMA.spec(LLAMA.complete(read_config_fields(directory)))
    weights = Weights(resolve_precision(CPU, "float32", None), scheme)
    read_weights(checkpoint_files(directory), spec, LLAMA.names, weights)
    return Decoder(spec, weights), weights


def test_merged_parameters_are_filled_tensor_by_tensor(quantized: Path) -> None:
    model, weights = load(quantized, Int8Rows())
    expected, plain = load(quantized.parent / "float", None)
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-4, atol=1e-4)
    assert weights.num_bytes < 0.6 * plain.num_bytes


def test_layers_ask_the_schemes_linear_for_fusions(quantized: Path) -> None:
    _, weights = load(quantized, Int8Rows())
    asked = {name: linear.gated_with for name, linear in weights.linears.items() if isinstance(linear, Int8Linear)}
    assert {name for name, activations in asked.items() if activations == ["silu"]} == {"layers.0.up", "layers.1.up"}


def test_a_missing_scale_is_named(quantized: Path) -> None:
    edit_tensors(quantized, lambda tensors: tensors.pop("model.layers.1.self_attn.k_proj.weight_scale"))
    with pytest.raises(CorruptWeights, match=r"lacks 1 tensors: layers\.1\.self_attn\.k_proj\.weight_scale$"):
        load(quantized, Int8Rows())


def test_integers_are_read_only_as_integers(quantized: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(CorruptWeights, match=r"is stored as int8; supported: float32"):
        load(quantized, None)
    edit_tensors(quantized, lambda tensors: tensors.update({name: tensors[name].float()}))
    with pytest.raises(CorruptWeights, match=r"up_proj\.weight' is stored as float32; supported: int8"):
        load(quantized, Int8Rows())


def test_dummy_weights_are_made_for_every_tensor(quantized: Path) -> None:
    spec = LLAMA.spec(LLAMA.complete(read_config_fields(quantized)))
    weights = Weights(resolve_precision(CPU, "float32", None), Int8Rows())
    fill_randomly(weights, replace(spec, tied_embeddings=True), seed=0)
    assert logits(Decoder(spec, weights)).isfinite().all()
