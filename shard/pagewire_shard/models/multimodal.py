"""Multimodal architectures of which the text model is served. Its fields stand in text_config, or beside the others as
in older checkpoints of Qwen2-VL. Gemma's are families of their own."""

from collections.abc import Iterable
from dataclasses import replace

from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.qwen2 import QWEN2
from pagewire_shard.models.qwen3 import QWEN3
from pagewire_shard.models.qwen3_moe import QWEN3_MOE

TEXT_SECTION = "text_config"
DEFAULT_TEXT_TYPES: dict[str, str] = {
    "AyaVisionForConditionalGeneration": "cohere2",
    "InternVLForConditionalGeneration": "qwen2",
    "LlavaForConditionalGeneration": "llama",
    "LlavaNextForConditionalGeneration": "llama",
    "LlavaOnevisionForConditionalGeneration": "qwen2",
    "Mistral3ForConditionalGeneration": "mistral",
    "Qwen2VLForConditionalGeneration": "qwen2_vl_text",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl_text",
    "Qwen3VLForConditionalGeneration": "qwen3_vl_text",
    "Qwen3VLMoeForConditionalGeneration": "qwen3_vl_moe_text",
    "Qwen3_5ForConditionalGeneration": "qwen3_5_text",
    "Qwen3_5MoeForConditionalGeneration": "qwen3_5_moe_text",
}
"""Architecture -> model_type of the text model where text_config does not state one."""
_QWEN2_VL_DEFAULTS = {
    **QWEN2.defaults,
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "max_window_layers": 80,
    "eos_token_id": 151645,
}
_QWEN3_VL_DEFAULTS = {"max_position_embeddings": 128000, "rope_theta": 500000.0}
TEXT_FAMILIES = (
    replace(QWEN2, model_type="qwen2_vl_text", defaults=_QWEN2_VL_DEFAULTS),
    replace(QWEN2, model_type="qwen2_5_vl_text", defaults=_QWEN2_VL_DEFAULTS),
    replace(QWEN3, model_type="qwen3_vl_text", defaults={**QWEN3.defaults, **_QWEN3_VL_DEFAULTS}),
    replace(
        QWEN3_MOE,
        model_type="qwen3_vl_moe_text",
        defaults={
            **QWEN3_MOE.defaults,
            **_QWEN3_VL_DEFAULTS,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "norm_topk_prob": True,
        },
    ),
)
"""Text models that have a model_type of their own only within a multimodal one."""
_PARTS = ("visual", "vision_tower", "vision_model", "multi_modal_projector", "image_newline")


def text_part(fields: ConfigFields, architecture: str, families: Iterable[Family]) -> Family:
    """The family of a multimodal configuration's text model.

    Args:
        families: Those whose text models may stand in it.

    Raises:
        UnsupportedArchitecture: there is no family for the text model.
    """
    section = fields.section(TEXT_SECTION)
    by_type = {family.model_type: family for family in (*families, *TEXT_FAMILIES) if family.text_section is None}
    text = by_type.get(section.text("model_type", DEFAULT_TEXT_TYPES[architecture]))
    if text is None:
        raise section.unsupported("model_type", ", ".join(sorted(by_type)))
    names = replace(
        text.names,
        text_prefixes=("language_model.model.", "model.language_model.", "language_model."),
        skipped=(*text.names.skipped, *(f"{prefix}{part}" for prefix in ("", "model.") for part in _PARTS)),
    )
    is_tied = fields.raw("tie_word_embeddings") is True

    def read(completed: ConfigFields) -> DecoderSpec:
        spec = text.spec(completed)
        # Either object may say so.
        return replace(spec, tied_embeddings=spec.tied_embeddings or is_tied)

    return replace(text, spec=read, names=names, text_section=TEXT_SECTION)
