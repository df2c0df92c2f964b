"""The checkpoints that the loader reads and those it refuses, naming the file and the tensor or field."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from pagewire_shard.errors import BadOption, CorruptWeights, ModelError, ModelNotFound, UnsupportedArchitecture
from pagewire_shard.layers import half_products
from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.forward_batch import ForwardBatch
from pagewire_shard.layers.linear import Float16PackedLinear, float16_packed_linear
from pagewire_shard.layers.rotary import RopeSpec
from pagewire_shard.loading.model_loader import LoadedModel, load_model
from pagewire_shard.models.decoder import Decoder, DecoderSpec
from pagewire_shard.models.hf_config import HFConfig, describe, read_config_fields
from pagewire_shard.models.registry import FAMILIES, find_family
from safetensors.torch import load_file, save_file

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}


def save(directory: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """A random Llama in `directory`."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, initializer_range=0.3, **options)
    transformers.LlamaForCausalLM(config).to(dtype).save_pretrained(directory)
    return directory


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return save(tmp_path)


def edit_config(model_dir: Path, **values: Any) -> None:
    path = model_dir / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_tensors(model_dir: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = model_dir / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path)


def load(model_dir: Path, **options: Any) -> LoadedModel:
    return load_model(model_dir, device=CPU, **options)


def spec(model_dir: Path) -> DecoderSpec:
    fields = read_config_fields(model_dir)
    family = find_family(fields)[1]
    return family.spec(family.complete(fields))


def attentions(model_dir: Path) -> list[AttentionSpec]:
    """Of each layer."""
    mixers = [layer.mixer for layer in spec(model_dir).layers]
    assert all(isinstance(mixer, AttentionSpec) for mixer in mixers)
    return cast("list[AttentionSpec]", mixers)


def described(model_dir: Path) -> HFConfig:
    fields = read_config_fields(model_dir)
    architecture, family = find_family(fields)
    return describe(model_dir, architecture, family.complete(fields))


def logits(model: Decoder) -> torch.Tensor:
    """Of a fixed prompt."""
    tokens = torch.arange(7)
    batch = ForwardBatch(
        input_ids=tokens,
        positions=tokens,
        slot_mapping=tokens,
        query_start_loc=torch.tensor([0, 7], dtype=torch.int32),
        seq_lens=torch.tensor([7], dtype=torch.int32),
        block_tables=torch.tensor([[0]], dtype=torch.int32),
        max_query_len=7,
        max_seq_len=7,
        read_slots=torch.tensor([-1], dtype=torch.int32),
        write_slots=torch.tensor([0], dtype=torch.int32),
    )
    caches = model.spec.allocate_caches(1, 8, torch.float32, CPU, num_states=1)
    return model.compute_logits(model.forward(batch, caches))


def test_fields_of_the_configuration_can_be_replaced(model_dir: Path, tmp_path: Path) -> None:
    """A model with other fields in its file, and one whose fields are replaced, are the same."""
    replaced = {"rope_parameters": {"rope_type": "linear", "factor": 4.0}, "rms_norm_eps": 1e-3}
    before = load(model_dir)
    given = load(model_dir, hf_overrides=replaced)
    rope = json.loads((model_dir / "config.json").read_text()).get("rope_parameters") or {}
    edit_config(model_dir, rms_norm_eps=1e-3, rope_parameters={**rope, **replaced["rope_parameters"]})
    edited = load(model_dir)
    torch.testing.assert_close(logits(given.model), logits(edited.model), rtol=0, atol=0)
    assert not torch.equal(logits(given.model), logits(before.model))
    assert load(model_dir, hf_overrides={}).hf_config.fields.raw("rms_norm_eps") == 1e-3


def test_a_sharded_checkpoint_gives_the_same_model(model_dir: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    transformers.LlamaForCausalLM.from_pretrained(model_dir).save_pretrained(sharded, max_shard_size="4KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert torch.equal(logits(load(sharded).model), logits(load(model_dir).model))


def test_tensors_known_to_be_needless_are_ignored(tmp_path: Path) -> None:
    model_dir = save(tmp_path, tie_word_embeddings=True)
    expected = logits(load(model_dir).model)

    def add_extras(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        tensors["model.layers.1.self_attn.rotary_emb.cos_cached"] = torch.ones(1, 1, 4, 8)
        tensors["model.rotary_emb.sin_cached"] = torch.ones(4, 8)
        tensors["model.rotary_emb.original_inv_freq"] = torch.ones(4)
        tensors["model.layers.0.self_attn.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.bool)
        tensors["model.embeddings.position_ids"] = torch.arange(32)[None]
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    edit_tensors(model_dir, add_extras)
    assert torch.equal(logits(load(model_dir).model), expected)


def test_gpt2s_causal_masks_are_ignored(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    expected = logits(load(tmp_path).model)

    def add_masks(tensors: dict[str, torch.Tensor]) -> None:
        tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 32, 32)
        tensors["transformer.h.1.attn.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.uint8)
        tensors["transformer.h.1.attn.masked_bias"] = torch.tensor(-1e4)

    edit_tensors(tmp_path, add_masks)
    assert torch.equal(logits(load(tmp_path).model), expected)


def test_names_without_the_base_model_prefix_are_read(model_dir: Path) -> None:
    expected = logits(load(model_dir).model)

    def strip(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    edit_tensors(model_dir, strip)
    assert torch.equal(logits(load(model_dir).model), expected)


@pytest.fixture
def _float16_packed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A processor that does not multiply bfloat16."""
    monkeypatch.setattr(half_products, "_contenders", dict)
    half_products.half_products.cache_clear()
    yield
    half_products.half_products.cache_clear()


@pytest.mark.usefixtures("_float16_packed")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoints_are_packed_as_float16_on_a_cpu(tmp_path: Path, dtype: torch.dtype) -> None:
    model_dir = save(tmp_path, dtype)
    loaded = load(model_dir)
    assert (loaded.dtype_name, loaded.cache_dtype) == ("float16", torch.float32)
    full = load(model_dir, dtype="float32")
    assert full.dtype_name == "float32"
    # The weights are the same numbers; bfloat16 has some too small for float16.
    torch.testing.assert_close(logits(loaded.model), logits(full.model), rtol=1e-4, atol=1e-4)
    assert loaded.weight_bytes < 0.6 * full.weight_bytes


@pytest.mark.usefixtures("_float16_packed")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_float32_checkpoint_is_packed_only_when_asked(model_dir: Path, dtype: str) -> None:
    assert load(model_dir).dtype_name == "float32"
    assert load(model_dir, dtype=dtype).dtype_name == "float16"


@pytest.mark.usefixtures("_float16_packed")
def test_tied_embeddings_work_packed(tmp_path: Path) -> None:
    model_dir = save(tmp_path, torch.bfloat16, tie_word_embeddings=True)
    reference = transformers.LlamaForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    with torch.no_grad():
        expected = reference(torch.arange(7)[None]).logits[0]
    torch.testing.assert_close(logits(load(model_dir).model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("factor", [2.0**17, 2.0**-12, 2.0**-20, 2.0**-80])
@pytest.mark.parametrize("place", ["all", "row", "column", "head"])
def test_no_bfloat16_weight_loses_digits_as_float16(factor: float, place: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(24, 32).bfloat16().float()
    where = {"all": ..., "row": 5, "column": (slice(None), 7), "head": slice(8, 16)}[place]
    weight[where] *= factor
    x, bias = torch.randn(3, 32), torch.randn(24)
    if place == "column":
        x[:, 7] /= factor  # so that the small weights matter
    for given in (None, bias):
        expected = torch.nn.functional.linear(x.double(), weight.double(), None if given is None else given.double())
        packed = float16_packed_linear(weight.clone(), given)
        assert isinstance(packed, Float16PackedLinear) or (place, factor) == ("column", 2.0**-80)
        torch.testing.assert_close(packed(x).double(), expected, rtol=1e-5, atol=1e-5 * min(1.0, factor))


def test_weights_that_float16_holds_are_packed_as_they_are() -> None:
    torch.manual_seed(0)
    weight = torch.randn(24, 32).bfloat16().float() * 0.02
    weight[3] = 0.0
    assert type(float16_packed_linear(weight, None)) is Float16PackedLinear
    assert not isinstance(float16_packed_linear(weight / 0.0, None), Float16PackedLinear)


def test_the_checkpoints_own_dtype_counts_where_the_configuration_is_silent(tmp_path: Path) -> None:
    model_dir = save(tmp_path, torch.float16)
    edit_config(model_dir, dtype=None)
    assert load(model_dir).dtype_name == "float16"


@pytest.mark.parametrize(
    ("name", "stated"), [("dtype", "bfloat16"), ("torch_dtype", "bfloat16"), ("torch_dtype", "torch.bfloat16")]
)
def test_both_spellings_of_the_dtype_are_read(model_dir: Path, name: str, stated: str) -> None:
    edit_config(model_dir, **{"dtype": None, "torch_dtype": None, name: stated})
    assert described(model_dir).checkpoint_dtype == "bfloat16"


def test_dummy_weights_need_only_config_json_and_depend_on_the_seed(model_dir: Path) -> None:
    (model_dir / "model.safetensors").unlink()
    first, again, other = (load(model_dir, load_format="dummy", seed=seed).model for seed in (1, 1, 2))
    assert torch.equal(logits(first), logits(again))
    assert not torch.equal(logits(first), logits(other))
    assert logits(first).isfinite().all()


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="nowhere does not exist"):
        load(tmp_path / "nowhere")


def test_a_directory_without_config_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"has no config\.json"):
        load(tmp_path)


def test_other_checkpoint_formats_are_named(model_dir: Path) -> None:
    (model_dir / "model.safetensors").rename(model_dir / "model.gguf")
    with pytest.raises(ModelNotFound, match=r"neither model\.safetensors nor .* found model\.gguf"):
        load(model_dir)


@pytest.mark.parametrize("size", [3, 100, -100], ids=["in-length", "in-header", "in-data"])
def test_a_truncated_file_is_named(model_dir: Path, size: int) -> None:
    path = model_dir / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CorruptWeights, match=r"model\.safetensors: cannot be read"):
        load(model_dir)


def test_missing_tensors_are_named(model_dir: Path) -> None:
    def remove(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.1.self_attn.k_proj.weight"], tensors["model.norm.weight"]

    edit_tensors(model_dir, remove)
    with pytest.raises(CorruptWeights, match=r"lacks 2 tensors: layers\.1\.self_attn\.k_proj\.weight, norm\.weight$"):
        load(model_dir)


def test_a_missing_merged_tensor_is_named_once(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors.pop("transformer.h.1.attn.c_attn.bias"))
    with pytest.raises(CorruptWeights, match=r"lacks 1 tensors: h\.1\.attn\.c_attn\.bias$"):
        load(tmp_path)


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.bias", "model.layers.2.input_layernorm.weight", "model.extra.weight"]
)
def test_a_tensor_without_a_place_is_named(model_dir: Path, name: str) -> None:
    edit_tensors(model_dir, lambda tensors: tensors.update({name: torch.zeros(16)}))
    with pytest.raises(CorruptWeights, match=f"tensor '{name}' does not belong"):
        load(model_dir)


def test_a_tensor_of_another_shape_is_named(model_dir: Path) -> None:
    edit_tensors(model_dir, lambda t: t.update({"model.layers.0.mlp.up_proj.weight": torch.zeros(24, 15)}))
    with pytest.raises(CorruptWeights, match=r"up_proj\.weight' has shape \[24, 15\], config.json asks for \[24, 16\]"):
        load(model_dir)


def test_a_tensor_of_another_type_is_named(model_dir: Path) -> None:
    edit_tensors(model_dir, lambda t: t.update({"model.norm.weight": torch.zeros(16, dtype=torch.int8)}))
    with pytest.raises(CorruptWeights, match=r"'model\.norm\.weight' is stored as int8; supported: float32"):
        load(model_dir)


def test_an_index_that_names_a_missing_file_is_named(model_dir: Path) -> None:
    (model_dir / "model.safetensors").unlink()
    index = model_dir / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}))
    with pytest.raises(CorruptWeights, match=r"do not exist: model-00001-of-00001\.safetensors"):
        load(model_dir)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_a_malformed_index_is_named(model_dir: Path, content: str) -> None:
    (model_dir / "model.safetensors").unlink()
    (model_dir / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CorruptWeights, match=r"model\.safetensors\.index\.json"):
        load(model_dir)


def test_an_unknown_architecture_names_those_supported(model_dir: Path) -> None:
    edit_config(model_dir, architectures=["MambaForCausalLM"])
    with pytest.raises(UnsupportedArchitecture, match="'MambaForCausalLM' is not supported") as raised:
        load(model_dir)
    assert all(name in raised.value.message for name in FAMILIES)
    edit_config(model_dir, architectures=["Qwen3MoEForCausalLM"])
    with pytest.raises(UnsupportedArchitecture, match="; the nearest is Qwen3MoeForCausalLM"):
        load(model_dir)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8", "mxfp4", "compressed-tensors"])
def test_quantized_weights_are_refused_by_the_name_of_the_method(model_dir: Path, method: str) -> None:
    edit_config(model_dir, quantization_config={"quant_method": method})
    with pytest.raises(UnsupportedArchitecture, match=f"quantized with {method}, which is not supported"):
        load(model_dir)


@pytest.mark.parametrize(
    "name", ["mlp.up_proj.qweight", "mlp.up_proj.weight_scale_inv", "mlp.experts.down_proj_blocks", "mlp.up_proj.SCB"]
)
def test_quantized_weights_are_known_by_their_tensors(model_dir: Path, name: str) -> None:
    edit_tensors(
        model_dir, lambda tensors: tensors.update({f"model.layers.0.{name}": torch.zeros(2, dtype=torch.int32)})
    )
    with pytest.raises(UnsupportedArchitecture, match="part of quantized weights, which is not supported"):
        load(model_dir)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"hidden_act": "quick_gelu"}, "hidden_act"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "spiral", "factor": 2.0}}, "rope_type"),
        ({"rope_parameters": None, "rope_scaling": {"type": "spiral"}}, "type"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        (
            {"architectures": ["Qwen2ForCausalLM"], "layer_types": ["full_attention", "linear_attention"]},
            "layer_types",
        ),
        ({"architectures": ["GPT2LMHeadModel"], "add_cross_attention": True}, "add_cross_attention"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_decoder_does_not_implement_is_refused_by_name(
    model_dir: Path, values: dict[str, Any], field: str
) -> None:
    edit_config(model_dir, **values)
    with pytest.raises(UnsupportedArchitecture, match=rf"config\.json: field '{field}' is .* not supported"):
        load(model_dir)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"architectures": None, "model_type": None}, "architectures"),
        ({"hidden_size": 2**40}, "hidden_size"),
        ({"hidden_size": 16.0}, "hidden_size"),
        ({"num_attention_heads": 3, "head_dim": None}, "hidden_size"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "factor"),
        ({"rope_parameters": {"rope_type": "longrope", "long_factor": [1.0] * 4}}, "short_factor"),
        ({"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "short_factor"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"eos_token_id": [[2]]}, "eos_token_id"),
        ({"eos_token_id": {"id": 2}}, "eos_token_id"),
        ({"eos_token_id": 2.5}, "eos_token_id"),
        ({"rope_parameters": [1]}, "rope_parameters"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_malformed_field_is_named(model_dir: Path, values: dict[str, Any], field: str) -> None:
    edit_config(model_dir, **values)
    (model_dir / "generation_config.json").unlink()
    with pytest.raises(ModelError, match=rf"config\.json: field '{field}'"):
        load(model_dir)


def test_a_config_that_is_not_json_is_named(model_dir: Path) -> None:
    (model_dir / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: cannot be read as JSON"):
        load(model_dir)


def test_an_unknown_dtype_is_refused(model_dir: Path) -> None:
    with pytest.raises(BadOption, match="--dtype int4"):
        load(model_dir, dtype="int4")


def test_end_of_sequence_tokens_come_from_the_generation_config_first(model_dir: Path) -> None:
    edit_config(model_dir, eos_token_id=7)
    generation_config = model_dir / "generation_config.json"
    generation_config.write_text(json.dumps({"eos_token_id": [3, 4]}))
    assert described(model_dir).eos_token_ids == (3, 4)
    generation_config.unlink()
    assert described(model_dir).eos_token_ids == (7,)


@pytest.mark.parametrize(
    ("in_generation", "in_config", "expected"),
    [
        (-1, 7, (7,)),
        ([3, -1, 50, 3], 7, (3,)),
        (2**40, None, ()),
        (None, [7, 8], (7, 8)),
        ([], 7, (7,)),
        (0, 7, (0,)),
    ],
)
def test_end_of_sequence_ids_outside_the_vocabulary_are_left_out(
    model_dir: Path, caplog: pytest.LogCaptureFixture, in_generation: Any, in_config: Any, expected: tuple[int, ...]
) -> None:
    edit_config(model_dir, eos_token_id=in_config)
    (model_dir / "generation_config.json").write_text(json.dumps({"eos_token_id": in_generation}))
    assert described(model_dir).eos_token_ids == expected
    odd = [i for i in (in_generation if isinstance(in_generation, list) else [in_generation or 0]) if not 0 <= i < 50]
    assert len(caplog.messages) == len(odd)
    assert all("generation_config.json: field 'eos_token_id'" in message for message in caplog.messages)


def test_model_type_stands_for_an_absent_architecture(model_dir: Path) -> None:
    edit_config(model_dir, architectures=None)
    assert described(model_dir).architecture == "LlamaForCausalLM"
    edit_config(model_dir, model_type="mamba")
    with pytest.raises(UnsupportedArchitecture, match="'mamba', which is not supported; supported: afmoe, apertus, "):
        load(model_dir)


def test_an_unknown_architecture_is_told_before_its_fields_are_judged(model_dir: Path) -> None:
    edit_config(model_dir, architectures=["MambaForCausalLM"], vocab_size="many", eos_token_id="</s>", dtype=7)
    with pytest.raises(
        UnsupportedArchitecture,
        match="'MambaForCausalLM' is not supported; supported: AfmoeForCausalLM, .*; the nearest is Mamba2ForCausalLM$",
    ):
        load(model_dir)


def reference_logits(model_dir: Path) -> torch.Tensor:
    """transformers', of the prompt of logits()."""
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.arange(7)[None]).logits[0]


@pytest.mark.usefixtures("_float16_packed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tied_embeddings_with_another_output_matrix_are_not_tied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, dtype: torch.dtype
) -> None:
    model_dir = save(tmp_path, dtype, tie_word_embeddings=False)
    edit_config(model_dir, tie_word_embeddings=True)
    torch.testing.assert_close(logits(load(model_dir).model), reference_logits(model_dir), rtol=1e-4, atol=1e-4)
    assert "tensor 'lm_head.weight' differs from 'model.embed_tokens.weight'" in caplog.text


def test_tied_embeddings_are_read_from_the_output_matrix_where_it_is_all_there_is(tmp_path: Path) -> None:
    model_dir = save(tmp_path, tie_word_embeddings=True)
    expected = logits(load(model_dir).model)
    edit_tensors(model_dir, lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}))
    assert torch.equal(logits(load(model_dir).model), expected)
    torch.testing.assert_close(reference_logits(model_dir), expected, rtol=1e-4, atol=1e-4)


def test_a_tied_output_projection_keeps_its_bias(tmp_path: Path) -> None:
    config = transformers.PhiConfig(**SIZES, tie_word_embeddings=True, initializer_range=0.3)
    model = transformers.PhiForCausalLM(config)
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(load(tmp_path).model), reference_logits(tmp_path), rtol=1e-4, atol=1e-4)


def test_an_untied_model_without_its_output_matrix_is_refused(model_dir: Path) -> None:
    edit_tensors(model_dir, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(CorruptWeights, match=r"lacks 1 tensors: lm_head\.weight$"):
        load(model_dir)


def test_both_spellings_of_rope_parameters_are_read(model_dir: Path) -> None:
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    edit_config(model_dir, rope_parameters={"rope_theta": 5e5, "rope_type": "llama3", **llama3})
    new = attentions(model_dir)
    edit_config(model_dir, rope_parameters=None, rope_theta=5e5, rope_scaling={"type": "llama3", **llama3})
    assert attentions(model_dir) == new
    assert new[0].rope == RopeSpec(5e5, 8, "llama3", 8.0, 16, low_freq_factor=1.0, high_freq_factor=4.0)


def test_yarn_extends_the_longest_sequence(model_dir: Path) -> None:
    edit_config(model_dir, rope_parameters={"rope_type": "yarn", "factor": 4.0})
    assert spec(model_dir).max_position == 128


@pytest.mark.parametrize(("values", "window"), [({}, 4096), ({"sliding_window": None}, 0), ({"sliding_window": 8}, 8)])
def test_mistrals_window_is_absent_null_or_given(model_dir: Path, values: dict[str, Any], window: int) -> None:
    edit_config(model_dir, architectures=["MistralForCausalLM"], **values)
    assert [attention.sliding_window for attention in attentions(model_dir)] == [window, window]


@pytest.mark.parametrize(
    ("values", "windows"),
    [
        ({"sliding_window": 8}, [0, 0]),
        ({"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0}, [8, 8]),
        ({"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}, [0, 8]),
        ({"sliding_window": None, "use_sliding_window": True, "max_window_layers": 1}, [0, 0]),
        (
            {
                "sliding_window": 8,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            [8, 0],
        ),
    ],
)
def test_qwens_windows_follow_layer_types_or_the_older_fields(
    model_dir: Path, values: dict[str, Any], windows: list[int]
) -> None:
    edit_config(model_dir, architectures=["Qwen2ForCausalLM"], **values)
    assert [attention.sliding_window for attention in attentions(model_dir)] == windows


def test_command_r_serves_the_context_it_was_trained_for(model_dir: Path) -> None:
    edit_config(model_dir, architectures=["CohereForCausalLM"])
    assert spec(model_dir).max_position == 32
    edit_config(model_dir, model_max_length=128)
    assert spec(model_dir).max_position == 128
