"""MiniCPM3: Llama's shape with multi-head latent attention, and multipliers of embeddings, residual and logits."""

from dataclasses import replace

from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.latent import LATENT_DEFAULTS, latent_spec, with_latent_attention
from pagewire_shard.models.llama import LLAMA_NAMES

DEFAULTS: dict[str, object] = {
    **LATENT_DEFAULTS,
    "vocab_size": 73448,
    "hidden_size": 2560,
    "intermediate_size": 6400,
    "num_hidden_layers": 62,
    "num_attention_heads": 40,
    "max_position_embeddings": 32768,
    "initializer_range": 0.1,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": True,
    "kv_lora_rank": 256,
    "q_lora_rank": 768,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": None,
    "scale_emb": 12,
    "scale_depth": 1.4,
    "dim_model_base": 256,
}


def _minicpm3(fields: ConfigFields) -> DecoderSpec:
    spec = latent_spec(fields, interleaved=False, mlp_bias=fields.flag("mlp_bias"))
    root = len(spec.layers) ** 0.5
    residual_scale = fields.positive_number("scale_depth", root) / root
    return replace(
        spec,
        layers=tuple(replace(layer, residual_scale=residual_scale) for layer in spec.layers),
        embedding_scale=fields.number("scale_emb"),
        rounds_embedding_scale=True,
        logit_scale=fields.positive_number("dim_model_base", spec.hidden_size) / spec.hidden_size,
    )


MINICPM3 = Family(_minicpm3, with_latent_attention(LLAMA_NAMES), "minicpm3", DEFAULTS)
