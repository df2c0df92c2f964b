"""A configuration with fields left out means what transformers takes it to mean, for every family and field."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from pagewire_shard.errors import ModelError
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.hf_config import describe, read_config_fields
from pagewire_shard.models.registry import FAMILIES, find_family
from transformers import CONFIG_MAPPING

from tests.shard.test_model_loader import logits as logits_of
from tests.shard.test_models import CASES

# Not a matter of the decoder, or what tells which family it is.
SKIPPED = {"architectures", "model_type", "dtype", "transformers_version"}
# Their configuration classes' defaults make no model: dots1's lack its experts, Glm4Moe's heads do not divide its size,
# LFM2-MoE's do not say which layers have attention.
NEEDS_FIELDS = {"deepseek_v2", "dots1", "glm4_moe", "lfm2_moe"}


def write(directory: Path, fields: dict[str, Any]) -> Path:
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


def spec(model_dir: Path) -> DecoderSpec:
    fields = read_config_fields(model_dir)
    family = find_family(fields)[1]
    return family.spec(family.complete(fields))


def outcome(model_dir: Path) -> DecoderSpec | str:
    """The decoder, or why there is none: a field that is left out may leave a mixture that no decoder is made of."""
    try:
        return spec(model_dir)
    except ModelError as error:
        return error.message.removeprefix(str(model_dir)).replace("is null", "is missing")


def eos_token_ids(model_dir: Path) -> tuple[int, ...]:
    fields = read_config_fields(model_dir)
    architecture, family = find_family(fields)
    return describe(model_dir, architecture, family.complete(fields)).eos_token_ids


def architecture_of(model_type: str) -> str:
    return next(name for name, family in FAMILIES.items() if family.model_type == model_type)


def understood(model_type: str, fields: dict[str, Any]) -> dict[str, Any]:
    """All fields, as transformers completes them."""
    completed: dict[str, Any] = CONFIG_MAPPING[model_type].from_dict(dict(fields)).to_dict()
    # It writes the window as null where it is not used, and makes none of the family's own of it.
    return completed | {"architectures": [architecture_of(model_type)], "model_type": model_type}


@pytest.mark.parametrize("architecture", FAMILIES)
def test_an_empty_configuration_is_the_configuration_class(tmp_path: Path, architecture: str) -> None:
    model_type = FAMILIES[architecture].model_type
    fields = {"model_type": model_type, "architectures": [architecture]}
    (tmp_path / "full").mkdir()
    full = write(tmp_path / "full", understood(model_type, fields))
    bare = write(tmp_path, fields)
    assert outcome(bare) == outcome(full)
    assert isinstance(outcome(bare), DecoderSpec) or model_type in NEEDS_FIELDS
    assert eos_token_ids(bare) == eos_token_ids(full)


@pytest.mark.parametrize("case", CASES)
def test_each_field_left_out_means_what_transformers_takes_it_to_mean(tmp_path: Path, case: str) -> None:
    config = CASES[case]
    stated = config.to_dict() | {
        "architectures": [architecture_of(config.model_type)],
        "model_type": config.model_type,
    }
    (tmp_path / "full").mkdir()
    compared = 0
    for name in sorted(set(stated) - SKIPPED):
        fields = {field: value for field, value in stated.items() if field != name}
        try:
            full = understood(config.model_type, fields)
        except (StrictDataclassError, ZeroDivisionError):  # transformers refuses such a mixture, or fails at it
            continue
        left_out = outcome(write(tmp_path, fields))
        assert left_out == outcome(write(tmp_path / "full", full)), name
        compared += isinstance(left_out, DecoderSpec)
    assert compared > 10


@pytest.mark.parametrize("architecture", FAMILIES)
def test_other_names_of_fields_are_read_and_count_where_both_are_there(tmp_path: Path, architecture: str) -> None:
    family = FAMILIES[architecture]
    known = set(CONFIG_MAPPING[family.model_type]().to_dict())
    for alias, name in CONFIG_MAPPING[family.model_type].attribute_map.items():
        if not {alias, name} & known or not {alias, name} & set(family.defaults):
            continue  # a property of the class, or no matter of the decoder
        for values in ({alias: 12}, {name: 12}, {alias: 12, name: 24}):
            fields = {"model_type": family.model_type, "architectures": [architecture], **values}
            try:
                config = CONFIG_MAPPING[family.model_type].from_dict(dict(fields))
            except StrictDataclassError:  # InternLM 3 has two flags that may not differ
                continue
            ours = family.complete(read_config_fields(write(tmp_path, fields)))
            canonical = family.aliases.get(alias, alias)
            assert ours.raw(canonical) == getattr(config, alias), values


@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        ("llama", {"num_key_value_heads": None, "head_dim": None}),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 500.0}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rope_theta": 900.0}),
        ("llama", {"rope_parameters": {"rope_type": "default"}, "rope_theta": 900.0}),
        ("llama", {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 4.0}}),
        ("llama", {"rope_parameters": {"type": "linear", "factor": 4.0}}),
        ("llama", {"rope_parameters": {}, "rope_scaling": None, "rope_theta": 300.0}),
        ("phi", {"partial_rotary_factor": 0.25, "rope_parameters": None}),
        ("phi", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.75}}),
        ("mixtral", {"rope_parameters": {"rope_type": "default"}}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 3, "layer_types": None, "max_window_layers": 0}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "layer_types": None, "max_window_layers": 1}),
        ("qwen3", {"sliding_window": None, "use_sliding_window": True, "layer_types": None}),
        ("mistral", {"sliding_window": None, "head_dim": None}),
    ],
)
def test_nested_renamed_and_null_fields_give_transformers_logits(
    tmp_path: Path, model_type: str, values: dict[str, Any]
) -> None:
    from pagewire_shard.loading.model_loader import load_model

    config = CONFIG_MAPPING[model_type](
        vocab_size=50,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    if model_type == "qwen3":
        values = values | {"head_dim": 128}
    write(tmp_path, fields | values)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = reference(torch.arange(7)[None]).logits[0]
    model = load_model(tmp_path, device=torch.device("cpu"), dtype="float32").model
    torch.testing.assert_close(logits_of(model), expected, rtol=1e-3, atol=1e-3)
