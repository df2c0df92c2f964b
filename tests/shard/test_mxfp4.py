"""gpt-oss with experts in MXFP4, as it was published, against transformers' own reading of the same files."""

import json
import logging
from pathlib import Path

import pytest
import torch
import transformers
from pagewire_shard.errors import CorruptWeights
from pagewire_shard.loading.mxfp4 import MAGNITUDES
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from tests.shard.test_model_loader import edit_tensors, load
from tests.shard.test_models import GPT_OSS, PagedModel, random_model, random_prompts

CONFIG = transformers.GptOssConfig(**{**GPT_OSS, "hidden_size": 64, "intermediate_size": 96})
GATE_UP, DOWN = (f"model.layers.{{}}.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj"))


def quantize(matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[..., rows, columns] -> blocks [..., rows, columns / 32, 16] and scales [..., rows, columns / 32], both uint8."""
    groups = matrices.unflatten(-1, (-1, 32))
    exponents = (groups.abs().amax(-1) / MAGNITUDES[-1]).log2().ceil()
    scaled = groups / torch.exp2(exponents)[..., None]
    nearest = (scaled.abs()[..., None] - torch.tensor(MAGNITUDES)).abs().argmin(-1)
    codes = (nearest + 8 * (scaled < 0)).to(torch.uint8)
    return codes[..., 0::2] | codes[..., 1::2] << 4, (exponents + 127).to(torch.uint8)


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """The experts' matrices are stored with their rows first, in two files."""
    random_model(CONFIG).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for index in range(CONFIG.num_hidden_layers):
        for name in (GATE_UP.format(index), DOWN.format(index)):
            blocks, scales = quantize(tensors.pop(name).transpose(1, 2))
            tensors |= {f"{name}_blocks": blocks.contiguous(), f"{name}_scales": scales.contiguous()}
    (tmp_path / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + name.endswith('_scales')}-of-00002.safetensors" for name in tensors}
    for file in set(files.values()):
        save_file({name: tensor for name, tensor in tensors.items() if files[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def reference(model_dir: Path) -> transformers.PreTrainedModel:
    """The model with the numbers that transformers makes of the blocks and scales."""
    tensors = {name: tensor for file in model_dir.glob("*.safetensors") for name, tensor in load_file(file).items()}
    for name in [name for name in tensors if name.endswith("_blocks")]:
        stem = name.removesuffix("_blocks")
        tensors[stem] = convert_moe_packed_tensors(tensors.pop(name), tensors.pop(f"{stem}_scales"))
    model = transformers.GptOssForCausalLM._from_config(CONFIG, attn_implementation="eager").eval()
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model


def test_logits_equal_transformers_for_experts_in_mxfp4(model_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = load(model_dir, dtype="float32").model
    assert "MXFP4 weights are dequantized" in caplog.text
    paged = PagedModel(model)
    sequences = [paged.add(prompt) for prompt in random_prompts()]
    paged.compute(sequences, 7)
    expected_model = reference(model_dir)
    for sequence in sequences:
        with torch.no_grad():
            expected = expected_model(torch.tensor([sequence.tokens])).logits[0]
        torch.testing.assert_close(torch.stack(sequence.logits), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("half", ["blocks", "scales"])
def test_a_missing_half_is_named(model_dir: Path, half: str) -> None:
    other = {"blocks": "scales", "scales": "blocks"}[half]
    merge_files(model_dir)
    edit_tensors(model_dir, lambda tensors: tensors.pop(f"{DOWN.format(1)}_{half}"))
    with pytest.raises(CorruptWeights, match=rf"layers\.1\.mlp\.experts\.down_proj_{other}' has no other half"):
        load(model_dir)


def test_scales_of_another_shape_are_named(model_dir: Path) -> None:
    merge_files(model_dir)
    name = f"{GATE_UP.format(0)}_scales"
    edit_tensors(model_dir, lambda tensors: tensors.update({name: tensors[name][:, 1:].contiguous()}))
    with pytest.raises(CorruptWeights, match="which does not fit that of 'model.layers.0.mlp.experts.gate_up_proj_s"):
        load(model_dir)


def merge_files(model_dir: Path) -> None:
    """One file in place of two."""
    files = list(model_dir.glob("*.safetensors"))
    save_file({k: v for file in files for k, v in load_file(file).items()}, model_dir / "model.safetensors")
    for path in [*files, model_dir / "model.safetensors.index.json"]:
        path.unlink()
