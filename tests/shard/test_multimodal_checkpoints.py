"""Of multimodal checkpoints the text model is served, however its tensors are named."""

import logging
from pathlib import Path

import pytest
import torch
import transformers
from pagewire_shard.loading.model_loader import load_model
from safetensors.torch import load_file, save_file

from tests.shard.test_model_loader import logits
from tests.shard.test_models import CASES, random_model

CPU = torch.device("cpu")


@pytest.fixture
def reference(tmp_path: Path) -> transformers.PreTrainedModel:
    """A multimodal model that is saved in tmp_path."""
    model = random_model(CASES["gemma3-multimodal"])
    model.save_pretrained(tmp_path)
    return model


@pytest.mark.parametrize("text", ["language_model.model.", "model.language_model."])
def test_names_of_both_versions_of_transformers_are_known(
    tmp_path: Path, reference: transformers.PreTrainedModel, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = "" if text.startswith("language_model.") else "model."
    tensors = {}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        module = name.removeprefix("model.").removeprefix("language_model.").removeprefix("model.")
        is_text = module.startswith(("layers.", "embed_tokens.", "norm."))
        tensors[(text if is_text else other) + module] = tensor
    save_file(tensors, tmp_path / "model.safetensors")
    with caplog.at_level(logging.INFO):
        model = load_model(tmp_path, device=CPU, dtype="float32").model
    with torch.no_grad():
        expected = reference(torch.arange(7)[None]).logits[0]
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert f"tensors of {other}vision_tower" in caplog.text
