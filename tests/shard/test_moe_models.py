"""Mixtures of experts: how checkpoints spell their experts, and what configurations ask for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pagewire_kernels.fused_moe import ClampedSwiglu, RouterSpec
from pagewire_shard.errors import CorruptWeights, ModelError, UnsupportedArchitecture
from pagewire_shard.layers.forward_batch import ForwardBatch
from pagewire_shard.layers.linear import PlainLinear
from pagewire_shard.layers.mlp import MlpSpec
from pagewire_shard.layers.moe import MixtureOfExperts, MixtureOfLinears, MoeSpec
from pagewire_shard.loading.model_loader import load_model
from pagewire_shard.models.decoder import Decoder
from safetensors.torch import load_file, save_file

from tests.shard.test_model_loader import edit_tensors
from tests.shard.test_models import DEEPSEEK_MOE, MLA

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
CONFIGS = {
    "mixtral": transformers.MixtralConfig(**SIZES, num_local_experts=4),
    "qwen3-moe": transformers.Qwen3MoeConfig(
        **SIZES, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True
    ),
}


def logits(model: Decoder, num_tokens: int = 9) -> torch.Tensor:
    caches = model.spec.allocate_caches(1, 16, torch.float32, CPU)
    places = torch.arange(num_tokens)
    batch = ForwardBatch(
        input_ids=places * 5 % 61,
        positions=places,
        slot_mapping=places,
        query_start_loc=torch.tensor([0, num_tokens], dtype=torch.int32),
        seq_lens=torch.tensor([num_tokens], dtype=torch.int32),
        block_tables=torch.zeros(1, 1, dtype=torch.int32),
        max_query_len=num_tokens,
        max_seq_len=num_tokens,
    )
    return model.compute_logits(model.forward(batch, caches))


@pytest.fixture(params=CONFIGS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.normal_(0, 0.2)
    model.save_pretrained(tmp_path)
    return model


def test_experts_saved_in_one_tensor_load_like_separate_ones(
    saved: transformers.PreTrainedModel, tmp_path: Path
) -> None:
    separate = logits(load_model(tmp_path, device=CPU, dtype="float32").model)
    # The parameters as transformers holds them in memory: all experts of a layer in one tensor.
    save_file({name: value.contiguous() for name, value in saved.state_dict().items()}, tmp_path / "model.safetensors")
    fused = load_model(tmp_path, device=CPU, dtype="float32").model
    assert torch.equal(logits(fused), separate)


def test_a_missing_expert_is_named(saved: transformers.PreTrainedModel, tmp_path: Path) -> None:
    tensors = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in tensors if ".experts.3." in name and name.endswith(("w3.weight", "up_proj.weight")))
    del tensors[gone]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CorruptWeights, match=gone.removeprefix("model.").replace(".", r"\.")):
        load_model(tmp_path, device=CPU, dtype="float32")


def test_an_expert_too_many_is_refused(saved: transformers.PreTrainedModel, tmp_path: Path) -> None:
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if ".experts.3." in name)
    # Whether it comes before the parameter is complete or after.
    del tensors[name.replace(".3.", ".2.")]
    tensors[name.replace(".3.", ".4.")] = tensors[name].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CorruptWeights, match=r"experts\.4.*does not belong"):
        load_model(tmp_path, device=CPU, dtype="float32")


def test_dummy_weights_need_only_a_configuration(saved: transformers.PreTrainedModel, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").unlink()
    loaded = load_model(tmp_path, device=CPU, dtype="float32", load_format="dummy")
    assert logits(loaded.model).isfinite().all()
    num_bytes = 4 * sum(parameter.numel() for parameter in saved.parameters())
    # Packed weights of so few columns are padded.
    assert num_bytes <= loaded.weight_bytes < 1.5 * num_bytes


def spec_of(tmp_path: Path, config: transformers.PretrainedConfig, **changes: object) -> list[MlpSpec | MoeSpec]:
    fields = json.loads(config.to_json_string(use_diff=False)) | changes
    (tmp_path / "config.json").write_text(json.dumps(fields))
    model = load_model(tmp_path, device=CPU, dtype="float32", load_format="dummy").model
    return [layer.feed_forward for layer in model.spec.layers]


def test_layers_may_stay_dense(tmp_path: Path) -> None:
    name = {"architectures": ["Qwen3MoeForCausalLM"]}
    dense, sparse = spec_of(tmp_path, CONFIGS["qwen3-moe"], **name, mlp_only_layers=[0])
    assert isinstance(dense, MlpSpec)
    assert sparse == MoeSpec(num_experts=4, intermediate_size=24, router=RouterSpec(2, renormalise=True))
    dense, sparse = spec_of(tmp_path, CONFIGS["qwen3-moe"], **name, decoder_sparse_step=2)
    assert (dense.intermediate_size, sparse.intermediate_size) == (40, 24)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_experts_per_tok": 5}, ModelError, "at most the number of experts, 4"),
        ({"hidden_act": "gelu"}, UnsupportedArchitecture, "hidden_act"),
        ({"num_local_experts": 0}, ModelError, "num_local_experts"),
    ],
)
def test_what_experts_cannot_do_is_refused(
    tmp_path: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        spec_of(tmp_path, CONFIGS["mixtral"], architectures=["MixtralForCausalLM"], **changes)


GPT_OSS = transformers.GptOssConfig(**SIZES, head_dim=8, num_local_experts=4, num_experts_per_tok=2)


@pytest.mark.parametrize("gone", ["mlp.experts.gate_up_proj_bias", "mlp.experts.down_proj", "self_attn.sinks"])
def test_what_a_checkpoint_lacks_of_gpt_oss_is_named(tmp_path: Path, gone: str) -> None:
    transformers.AutoModelForCausalLM.from_config(GPT_OSS).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[f"model.layers.1.{gone}"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CorruptWeights, match=f"lacks 1 tensors: layers.1.{gone}$"):
        load_model(tmp_path, device=CPU, dtype="float32")


@pytest.mark.parametrize(
    "spec",
    [
        MoeSpec(4, 24, RouterSpec(2, renormalise=True), bias=True, gate=ClampedSwiglu(1.702, 0.5)),
        MoeSpec(4, 24, RouterSpec(2, renormalise=True), bias=True, gate="gelu_tanh", expert_scales=True),
        MoeSpec(4, 24, RouterSpec(2, "sigmoid", weighs_inputs=True), bias=True),
    ],
    ids=["clamped", "scaled", "weighs inputs"],
)
def test_one_kernel_for_all_experts_and_a_product_for_each_agree(spec: MoeSpec) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: {
            "weight": torch.randn(parameter.shape, generator=generator) * 0.3,
            "bias": torch.randn(parameter.num_rows, generator=generator),
        }
        for name, parameter in spec.parameters(32).items()
    }
    router, up, down = (tensors[name] for name in ("router", "experts_up", "experts_down"))
    ups, downs = (
        [PlainLinear(*pair) for pair in zip(each["weight"].chunk(4), each["bias"].chunk(4), strict=True)]
        for each in (up, down)
    )
    route = PlainLinear(router["weight"], router["bias"])
    scales = tensors["expert_scales"]["weight"] if spec.expert_scales else None
    x = torch.randn(9, 32, generator=generator)
    expected = MixtureOfLinears(spec, route, None, scales, ups, downs)(x)
    torch.testing.assert_close(MixtureOfExperts(spec, route, None, scales, up, down)(x), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("query_latent", "module"), [(None, "q_proj"), (8, "q_a_proj")])
def test_a_missing_projection_of_queries_has_the_name_that_the_configuration_asks_for(
    tmp_path: Path, query_latent: int | None, module: str
) -> None:
    """DeepSeek-V2-Lite has q_lora_rank null."""
    config = transformers.DeepseekV2Config(**MLA | {"q_lora_rank": query_latent}, **DEEPSEEK_MOE)
    transformers.DeepseekV2ForCausalLM(config).save_pretrained(tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors.pop(f"model.layers.1.self_attn.{module}.weight"))
    with pytest.raises(CorruptWeights, match=rf"lacks 1 tensors: layers\.1\.self_attn\.{module}\.weight$"):
        load_model(tmp_path, device=CPU)
