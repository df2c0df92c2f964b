"""Layers by themselves: packed products against torch's own, rotary angles against transformers'."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pagewire_shard.layers import linear
from pagewire_shard.layers.rotary import cos_sin_cache
from pagewire_shard.models.hf_config import read_config_fields
from pagewire_shard.models.rope import read_rope
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding


@pytest.fixture(params=["packed", "without packed operators"])
def _operators(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "packed":
        monkeypatch.setattr(linear, "has_onednn", lambda: False)
        monkeypatch.setattr(linear, "has_fbgemm", lambda: False)


@pytest.mark.usefixtures("_operators")
@pytest.mark.parametrize("factory", [linear.float32_linear, linear.float16_packed_linear])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("out_features", "in_features"), [(1, 1), (7, 33), (200, 96)])
def test_a_linear_is_the_matrix_product(
    factory: linear.LinearFactory, biased: bool, out_features: int, in_features: int
) -> None:
    torch.manual_seed(0)
    # Representable in float16, so that packing loses nothing.
    weight = torch.randn(out_features, in_features).half().float()
    bias = torch.randn(out_features) if biased else None
    run = factory(weight.clone(), bias)
    for num_rows in (1, 2, 17, 130):
        x = torch.randn(num_rows, 2 * in_features)[:, ::2]
        expected = torch.nn.functional.linear(x, weight, bias)
        torch.testing.assert_close(run(x), expected, rtol=1e-4, atol=1e-4)


def test_packing_as_float16_halves_the_memory() -> None:
    weight = torch.zeros(64, 64)
    assert linear.Float16PackedLinear(weight, None).num_bytes * 2 == linear.OneDnnLinear(weight, None).num_bytes


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 3.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 256},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
        {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
        {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.8},
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.2},
    ],
)  # fmt: skip
def test_angles_are_bit_for_bit_those_of_transformers(scaling: dict[str, Any], tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        max_position_embeddings=2048, rope_parameters={"rope_theta": 5e5, **scaling}, architectures=["LlamaForCausalLM"]
    )
    config.save_pretrained(tmp_path)
    positions = torch.arange(2048)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    cache = cos_sin_cache(read_rope(read_config_fields(tmp_path), 128), 2048, torch.device("cpu"))
    # transformers repeats the angles for the second half of a head.
    assert torch.equal(cache, torch.cat((cos[0, :, :64], sin[0, :, :64]), dim=-1))
