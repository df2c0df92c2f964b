"""Of multimodal checkpoints the text model is served, however its tensors are named."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pagewire_shard.errors import UnsupportedArchitecture
from pagewire_shard.loading.model_loader import load_model
from safetensors.torch import load_file, save_file

from tests.shard.test_model_loader import logits
from tests.shard.test_models import CASES, DELTA, DELTA_MOE, random_model

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


TEXT: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
QWEN_VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [2, 1, 1]}}
WRAPPED: dict[str, transformers.PretrainedConfig] = {
    "mistral3": transformers.Mistral3Config(text_config={"model_type": "mistral", **TEXT}, vision_config=VISION),
    "llava": transformers.LlavaConfig(
        text_config={"model_type": "qwen2", **TEXT},
        vision_config={"model_type": "clip_vision_model", **VISION},
        tie_word_embeddings=False,
    ),
    "qwen2.5-vl": transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, **MROPE}, vision_config={**QWEN_VISION, "fullatt_block_indexes": [0]}
    ),
    "qwen3-vl": transformers.Qwen3VLConfig(
        text_config={**TEXT, **MROPE}, vision_config={**QWEN_VISION, "deepstack_visual_indexes": [0]}
    ),
    "qwen3-5-moe": transformers.Qwen3_5MoeConfig(
        text_config={
            **{name: value for name, value in DELTA.items() if name != "intermediate_size"},
            **DELTA_MOE,
            "rope_parameters": {**MROPE["rope_parameters"], "partial_rotary_factor": 0.5},
        },
        vision_config=QWEN_VISION,
    ),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_the_text_model_of_other_multimodal_models_is_served(tmp_path: Path, case: str) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(WRAPPED[case], attn_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.data.normal_(float(parameter.ndim < 2), 0.2)
    model.tie_weights()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(input_ids=torch.arange(7)[None], attention_mask=torch.ones(1, 7)).logits[0]
    served = load_model(tmp_path, device=CPU, dtype="float32").model
    torch.testing.assert_close(logits(served), expected, rtol=1e-4, atol=1e-4)


def test_a_text_model_of_no_family_is_refused_by_name(tmp_path: Path) -> None:
    config = {"architectures": ["LlavaForConditionalGeneration"], "text_config": {"model_type": "mamba"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedArchitecture, match="'mamba', which is not supported; supported: .*llama"):
        load_model(tmp_path, device=CPU, load_format="dummy")
