"""Layers by themselves: products against torch's own, angles and kinds of norms against transformers', caches."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import transformers
from pagewire_shard.layers import linear
from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.block import BLOCKS, EndingBlock, LayerSpec, Wiring
from pagewire_shard.layers.latent_attention import LatentAttentionSpec
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.layers.precision import resolve_precision
from pagewire_shard.layers.rotary import RopeSpec, cos_sin_cache
from pagewire_shard.layers.weights import Weights
from pagewire_shard.loading.checkpoint import checkpoint_files
from pagewire_shard.loading.model_loader import load_model
from pagewire_shard.loading.weight_reader import read_weights
from pagewire_shard.models.decoder import Decoder, DecoderSpec
from pagewire_shard.models.hf_config import read_config_fields
from pagewire_shard.models.llama import LLAMA
from pagewire_shard.models.rope import read_rope
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tests.shard.test_model_loader import logits


@pytest.fixture(params=["packed", "without AVX-512", "without packed operators"])
def _operators(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "packed":
        monkeypatch.setattr(linear, "has_instructions", lambda dtype: False)
    if request.param == "without packed operators":
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
        out = torch.full_like(expected, torch.nan)
        run.write(x, out)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("_operators")
@pytest.mark.parametrize("factory", [linear.float32_linear, linear.float16_packed_linear])
def test_a_row_has_the_same_bits_in_any_batch(factory: linear.LinearFactory) -> None:
    torch.manual_seed(0)
    # oneDNN adds up a row as long as this in another order if it is alone.
    run, x = factory(torch.randn(768, 2048).half().float() * 0.02, None), torch.randn(96, 2048)
    if isinstance(run, linear.PlainLinear):
        pytest.skip("torch's own product makes no such promise")
    whole = run(x)
    assert all(torch.equal(run(x[:num_rows]), whole[:num_rows]) for num_rows in (1, 2, 3, 7, 16, 33, 65))


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


EPS = 1e-5
CPU = torch.device("cpu")


def with_norms(model: transformers.LlamaForCausalLM, make: Any) -> transformers.LlamaForCausalLM:
    """The model with a norm of another kind at every place."""
    for layer in model.model.layers:
        layer.input_layernorm, layer.post_attention_layernorm = make(), make()
    model.model.norm = make()
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize(
    ("norm", "make"),
    [
        (NormSpec("layer", EPS, bias=False), lambda: CohereLayerNorm(16, EPS)),
        (NormSpec("layer", EPS, bias=True), lambda: torch.nn.LayerNorm(16, EPS)),
        (NormSpec("rms", EPS), lambda: torch.nn.RMSNorm(16, EPS)),
    ],
    ids=["layer-without-bias", "layer", "rms"],
)
def test_the_kind_of_norm_is_the_specs(norm: NormSpec, make: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32,
    )  # fmt: skip
    reference = with_norms(transformers.LlamaForCausalLM(config), make)
    reference.save_pretrained(tmp_path)
    spec = LLAMA.spec(LLAMA.complete(read_config_fields(tmp_path)))
    spec = replace(spec, layers=tuple(replace(layer, norm=norm) for layer in spec.layers), final_norm=norm)
    weights = Weights(resolve_precision(CPU, "float32", None))
    read_weights(checkpoint_files(tmp_path, allow_torch=False), spec, LLAMA.names, weights)
    model = Decoder(spec, weights)
    with torch.no_grad():
        expected = reference(torch.arange(7)[None]).logits[0]
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


def test_the_scale_of_embeddings_is_rounded_to_the_checkpoints_dtype(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.GemmaConfig(
        vocab_size=50, hidden_size=24, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=32, initializer_range=0.3,
    )  # fmt: skip
    transformers.GemmaForCausalLM(config).bfloat16().save_pretrained(tmp_path)
    reference = transformers.GemmaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    reference.model.embed_tokens.embed_scale.fill_(4.90625)  # the root of 24 in bfloat16
    model = load_model(tmp_path, device=CPU).model
    with torch.no_grad():
        expected = reference(torch.arange(7)[None]).logits[0]
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)


def test_the_caches_are_what_each_layers_mixer_declares() -> None:
    attention = AttentionSpec(num_heads=4, num_kv_heads=4, head_dim=8, scale=1.0)
    mlp = MlpSpec(intermediate_size=8, activation="silu", gated=True, bias=False)
    shared = replace(attention, num_kv_heads=1, head_dim=16)
    latent = LatentAttentionSpec(
        num_heads=4, latent_dim=20, nope_dim=8, rope_dim=6, value_dim=8, scale=1.0, rope=RopeSpec(1e4, 6),
        norm=NormSpec("rms", EPS),
    )  # fmt: skip
    layers = tuple(LayerSpec(mixer, mlp, NormSpec("rms", EPS)) for mixer in (attention, shared, latent))
    spec = DecoderSpec(
        vocab_size=50, hidden_size=16, max_position=32, layers=layers, final_norm=None, tied_embeddings=True,
        initializer_range=0.02,
    )  # fmt: skip
    caches = spec.allocate_caches(3, 4, torch.float32, CPU)
    assert [tuple(cache[-1].shape) for cache in caches] == [(3, 4, 4, 8), (3, 1, 4, 16), (3, 4, 26)]
    assert 3 * spec.block_bytes(4, torch.float32) == sum(tensor.nbytes for cache in caches for tensor in cache)


@pytest.mark.parametrize("wiring", get_args(Wiring))
def test_a_block_yields_the_tokens_that_are_wanted_and_no_others(wiring: Wiring) -> None:
    """Its mixer has all of them all the same."""
    torch.manual_seed(0)
    mixing, feeding = torch.randn(8, 8), torch.randn(8, 8)
    norms = [NormSpec("rms", 1e-6).build({"weight": torch.rand(8) + 0.5}) for _ in BLOCKS[wiring].norm_places]

    def mixer(x: torch.Tensor, *_: object) -> torch.Tensor:
        return x.cumsum(0) @ mixing

    block: Any = BLOCKS[wiring](mixer, lambda x: (x @ feeding).tanh(), *norms)
    ending = EndingBlock(block, lambda x, inputs: x * inputs[:, 0], torch.tensor(0.5))
    stream = torch.randn(5, 8), None if wiring == "post" else torch.randn(5, 8)
    batch: Any = type("Batch", (), {"layer_inputs": torch.randn(5, 1, 8)})
    kept = torch.tensor([4, 1, 1])
    for each in (block, ending):
        for all_tokens, wanted in zip(each(stream, batch, ()), each(stream, batch, (), kept), strict=True):
            assert (wanted is None) == (all_tokens is None)
            if all_tokens is not None:
                torch.testing.assert_close(wanted, all_tokens[kept])
