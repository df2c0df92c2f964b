"""Every family against transformers' own implementation, through paged caches whose blocks are out of order."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pagewire_shard.layers.forward_batch import ForwardBatch
from pagewire_shard.loading.model_loader import load_model
from pagewire_shard.models.decoder import Decoder

VOCAB_SIZE = 97
PROMPT_LENS = (1, 23, 9)
NUM_NEW = 12
"""Tokens that sequences are continued by. A prompt that is short, where length matters, stays short."""

LLAMA: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
LAYERS_4 = {**LLAMA, "num_hidden_layers": 4}
"""For families in which every fourth layer is of another kind."""
PHI3 = {**LLAMA, "original_max_position_embeddings": 64, "pad_token_id": None, "eos_token_id": 2}
GEMMA = {**LLAMA, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 6, "final_logit_softcapping": 5.0}
OPT: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 32,
}
GPT2: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4}
FALCON = {name: value for name, value in LLAMA.items() if name != "intermediate_size"}
MPT: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}
GPT_OSS: dict[str, Any] = {
    **LLAMA,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 6,
    "num_experts_per_tok": 3,
    "sliding_window": 6,
    "swiglu_limit": 1.0,
}
MLA: dict[str, Any] = {
    **LLAMA,
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
}
DEEPSEEK_MOE: dict[str, Any] = {
    "moe_intermediate_size": 20,
    "num_experts_per_tok": 2,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
}
QWEN3_MOE: dict[str, Any] = {
    **LLAMA,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
}


def rope(variant: str, **parameters: float | list[float]) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": variant, "rope_theta": 1000.0, **parameters}}


CASES: dict[str, transformers.PretrainedConfig] = {
    "llama": transformers.LlamaConfig(**LLAMA),
    "llama-gqa-tied": transformers.LlamaConfig(**LLAMA, num_key_value_heads=2, tie_word_embeddings=True),
    "llama-mqa-odd-heads": transformers.LlamaConfig(
        **{**LLAMA, "hidden_size": 24, "num_attention_heads": 3}, num_key_value_heads=1, head_dim=16
    ),
    "llama-biases": transformers.LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True, hidden_act="gelu"),
    "llama-gelu-tanh": transformers.LlamaConfig(**LLAMA, hidden_act="gelu_pytorch_tanh"),
    "llama-rope-linear": transformers.LlamaConfig(**LLAMA, **rope("linear", factor=4.0)),
    "llama-rope-llama3": transformers.LlamaConfig(
        **LLAMA,
        **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16),
    ),
    "llama-rope-yarn": transformers.LlamaConfig(
        **LLAMA, **rope("yarn", factor=4.0, original_max_position_embeddings=16)
    ),
    "mistral-window": transformers.MistralConfig(**LLAMA, num_key_value_heads=2, head_dim=16, sliding_window=5),
    "mistral-no-window": transformers.MistralConfig(**LLAMA, num_key_value_heads=2, sliding_window=None),
    "qwen2": transformers.Qwen2Config(**LLAMA, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen2-window-on-last-layer": transformers.Qwen2Config(
        **LLAMA, num_key_value_heads=2, use_sliding_window=True, sliding_window=6, max_window_layers=1
    ),
    "qwen3": transformers.Qwen3Config(**LLAMA, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True),
    "qwen3-biases": transformers.Qwen3Config(**LLAMA, num_key_value_heads=4, head_dim=8, attention_bias=True),
    "opt": transformers.OPTConfig(**OPT),
    "opt-norm-after-projected": transformers.OPTConfig(
        **{**OPT, "word_embed_proj_dim": 16}, do_layer_norm_before=False
    ),
    "opt-norms-without-weights": transformers.OPTConfig(**OPT, layer_norm_elementwise_affine=False),
    "opt-no-biases-no-final-norm": transformers.OPTConfig(**OPT, enable_bias=False, _remove_final_layer_norm=True),
    "gpt2": transformers.GPT2Config(**GPT2),
    "gpt2-untied-scaled-by-layer": transformers.GPT2Config(
        **GPT2, n_inner=40, tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True, activation_function="relu"
    ),
    "phi": transformers.PhiConfig(**LLAMA, num_key_value_heads=2),
    "phi-norms-of-heads": transformers.PhiConfig(**LLAMA, num_key_value_heads=2, qk_layernorm=True),
    "cohere": transformers.CohereConfig(**LLAMA, num_key_value_heads=2, logit_scale=0.3, eos_token_id=2),
    "cohere-norms-of-heads": transformers.CohereConfig(
        **LLAMA, num_key_value_heads=2, use_qk_norm=True, attention_bias=True, tie_word_embeddings=False, eos_token_id=2
    ),
    "cohere-rope-linear": transformers.CohereConfig(**LLAMA, eos_token_id=2, **rope("linear", factor=4.0)),
    "cohere2": transformers.Cohere2Config(
        **LAYERS_4, num_key_value_heads=2, logit_scale=0.3, sliding_window=6, eos_token_id=2
    ),
    "ministral": transformers.MinistralConfig(
        **LLAMA,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=6,
        layer_types=["full_attention", "sliding_attention"],
    ),
    "ministral3": transformers.Ministral3Config(
        **LLAMA,
        num_key_value_heads=2,
        head_dim=8,
        **rope("yarn", factor=4.0, original_max_position_embeddings=6, llama_4_scaling_beta=0.3),
    ),
    "cwm": transformers.CwmConfig(**LAYERS_4, num_key_value_heads=2, head_dim=16, sliding_window=6, eos_token_id=2),
    "phi3": transformers.Phi3Config(**PHI3, num_key_value_heads=2, **rope("default", partial_rotary_factor=0.5)),
    "phi3-longrope": transformers.Phi3Config(
        **PHI3 | {"original_max_position_embeddings": 22},
        num_key_value_heads=2,
        **rope(
            "longrope",
            partial_rotary_factor=0.75,
            short_factor=[1.0, 1.2, 1.5],
            long_factor=[1.5, 3.0, 6.0],
            original_max_position_embeddings=22,
        ),
    ),
    "phi3-window-tied": transformers.Phi3Config(**PHI3, sliding_window=6, tie_word_embeddings=True),
    "gemma": transformers.GemmaConfig(**LLAMA, num_key_value_heads=1, head_dim=16, hidden_act="gelu"),
    "gemma2": transformers.Gemma2Config(**GEMMA, query_pre_attn_scalar=12, attn_logit_softcapping=3.0),
    "gemma2-no-caps-untied": transformers.Gemma2Config(
        **{**GEMMA, "final_logit_softcapping": None}, attn_logit_softcapping=None, tie_word_embeddings=False
    ),
    "gemma3": transformers.Gemma3TextConfig(
        **GEMMA,
        query_pre_attn_scalar=12,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
        },
    ),
    "gemma3-multimodal": transformers.Gemma3Config(
        text_config={**GEMMA, "query_pre_attn_scalar": 12, "final_logit_softcapping": None},
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
        },
        mm_tokens_per_image=4,
    ),
    "gemma4": transformers.Gemma4TextConfig(
        **{**GEMMA, "num_hidden_layers": 3},
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        global_head_dim=32,
        hidden_size_per_layer_input=12,
        vocab_size_per_layer_input=VOCAB_SIZE + 5,
    ),
    "gemma4-keys-are-values-no-layer-inputs": transformers.Gemma4TextConfig(
        **GEMMA,
        global_head_dim=24,
        hidden_size_per_layer_input=0,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
    ),
    "gemma4-experts": transformers.Gemma4TextConfig(
        **GEMMA,
        global_head_dim=32,
        hidden_size_per_layer_input=0,
        enable_moe_block=True,
        num_experts=5,
        top_k_experts=2,
        moe_intermediate_size=20,
    ),
    "gemma4-shared-keys-and-values": transformers.Gemma4TextConfig(
        **{**GEMMA, "num_hidden_layers": 5},
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        global_head_dim=32,
        hidden_size_per_layer_input=12,
        vocab_size_per_layer_input=VOCAB_SIZE,
        num_kv_shared_layers=2,
        use_double_wide_mlp=True,
    ),
    "gemma4-multimodal": transformers.Gemma4Config(
        text_config={
            **GEMMA,
            "global_head_dim": 32,
            "hidden_size_per_layer_input": 12,
            "vocab_size_per_layer_input": VOCAB_SIZE,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "position_embedding_size": 64,
        },
    ),
    "vault-gemma": transformers.VaultGemmaConfig(**GEMMA, query_pre_attn_scalar=12, attn_logit_softcapping=3.0),
    "gpt-oss": transformers.GptOssConfig(**GPT_OSS),
    "gpt-oss-no-biases-rope-of-its-own": transformers.GptOssConfig(
        **{**GPT_OSS, "swiglu_limit": 0.3}, attention_bias=False, tie_word_embeddings=True, **rope("linear", factor=2.0)
    ),
    "apertus": transformers.ApertusConfig(**LLAMA, num_key_value_heads=2, dtype="float32"),
    "apertus-relu2-biases": transformers.ApertusConfig(**LLAMA, hidden_act="relu2", attention_bias=True),
    "granite": transformers.GraniteConfig(
        **LLAMA,
        num_key_value_heads=2,
        embedding_multiplier=3.0,
        attention_multiplier=0.2,
        residual_multiplier=0.5,
        logits_scaling=2.0,
    ),
    "granite-moe": transformers.GraniteMoeConfig(
        **LLAMA, num_key_value_heads=2, num_local_experts=5, residual_multiplier=0.5, attention_multiplier=0.2
    ),
    "granite-moe-shared": transformers.GraniteMoeSharedConfig(
        **LLAMA, num_key_value_heads=2, num_local_experts=5, shared_intermediate_size=20, attention_multiplier=0.2
    ),
    "granite-moe-shared-without": transformers.GraniteMoeSharedConfig(**LLAMA, num_local_experts=3),
    "olmoe": transformers.OlmoeConfig(
        **LLAMA, num_key_value_heads=2, num_experts=6, num_experts_per_tok=3, norm_topk_prob=True, pad_token_id=None
    ),
    "olmoe-clipped": transformers.OlmoeConfig(
        **LLAMA, num_key_value_heads=2, num_experts=3, num_experts_per_tok=1, clip_qkv=0.5, pad_token_id=None
    ),
    "qwen2-moe": transformers.Qwen2MoeConfig(
        **LLAMA,
        num_key_value_heads=2,
        num_experts=6,
        num_experts_per_tok=3,
        moe_intermediate_size=20,
        shared_expert_intermediate_size=28,
        mlp_only_layers=[0],
    ),
    "smollm3": transformers.SmolLM3Config(**LAYERS_4, num_key_value_heads=2, pad_token_id=None),
    "smollm3-windows": transformers.SmolLM3Config(
        **LLAMA,
        num_key_value_heads=2,
        no_rope_layers=[0, 1],
        use_sliding_window=True,
        sliding_window=6,
        pad_token_id=None,
    ),
    "seed-oss": transformers.SeedOssConfig(**LLAMA, num_key_value_heads=2, head_dim=16, attention_out_bias=True),
    "glm": transformers.GlmConfig(**LLAMA, num_key_value_heads=2, head_dim=8, pad_token_id=None),
    "glm4": transformers.Glm4Config(**LLAMA, num_key_value_heads=2, head_dim=8, pad_token_id=None),
    "olmo": transformers.OlmoConfig(**LLAMA, num_key_value_heads=2, clip_qkv=0.5, pad_token_id=None, eos_token_id=2),
    "olmo2": transformers.Olmo2Config(**LLAMA, num_key_value_heads=2, pad_token_id=None),
    "olmo3": transformers.Olmo3Config(
        **LAYERS_4,
        num_key_value_heads=2,
        sliding_window=6,
        pad_token_id=None,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
            "full_attention": {
                "rope_type": "yarn",
                "rope_theta": 1000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "exaone4": transformers.Exaone4Config(**LAYERS_4, num_key_value_heads=2, sliding_window=6),
    "exaone4-no-window": transformers.Exaone4Config(
        **LLAMA, num_key_value_heads=2, sliding_window=None, layer_types=["full_attention"] * 2
    ),
    "ernie4-5": transformers.Ernie4_5Config(**LLAMA, num_key_value_heads=2, head_dim=8, use_bias=True),
    "helium": transformers.HeliumConfig(**LLAMA, num_key_value_heads=2, head_dim=8, pad_token_id=None),
    "arcee": transformers.ArceeConfig(**LLAMA, num_key_value_heads=2, head_dim=8, mlp_bias=True),
    "nemotron": transformers.NemotronConfig(**LLAMA, num_key_value_heads=2, head_dim=8),
    "starcoder2": transformers.Starcoder2Config(**LLAMA, num_key_value_heads=2, sliding_window=6),
    "stablelm": transformers.StableLmConfig(**LLAMA, num_key_value_heads=2, use_qkv_bias=True),
    "stablelm-parallel": transformers.StableLmConfig(**LLAMA, num_key_value_heads=4, use_parallel_residual=True),
    "mixtral": transformers.MixtralConfig(**LLAMA, num_key_value_heads=2, num_local_experts=5),
    "mixtral-window-top-1": transformers.MixtralConfig(
        **LLAMA, num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=1, sliding_window=6
    ),
    "qwen3-moe": transformers.Qwen3MoeConfig(**QWEN3_MOE, norm_topk_prob=True),
    "qwen3-moe-one-layer-dense": transformers.Qwen3MoeConfig(**QWEN3_MOE, mlp_only_layers=[0], attention_bias=True),
    "gpt-neox": transformers.GPTNeoXConfig(**LLAMA, **rope("default", partial_rotary_factor=0.5)),
    "gpt-neox-in-sequence": transformers.GPTNeoXConfig(
        **LLAMA, use_parallel_residual=False, attention_bias=False, **rope("default", partial_rotary_factor=0.25)
    ),
    "persimmon": transformers.PersimmonConfig(**LLAMA),
    "gptj": transformers.GPTJConfig(**GPT2, rotary_dim=4),
    "gptj-tied": transformers.GPTJConfig(**GPT2, rotary_dim=8, n_inner=40, tie_word_embeddings=True),
    "codegen": transformers.CodeGenConfig(**{**GPT2, "n_head": 8, "n_embd": 64}, rotary_dim=4, n_ctx=64),
    "gpt-bigcode": transformers.GPTBigCodeConfig(**GPT2),
    "gpt-bigcode-head-by-head": transformers.GPTBigCodeConfig(**GPT2, multi_query=False),
    "falcon-7b": transformers.FalconConfig(**FALCON),
    "falcon-40b": transformers.FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2, bias=True),
    "falcon-11b": transformers.FalconConfig(
        **FALCON, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1, ffn_hidden_size=40
    ),
    "falcon-rw": transformers.FalconConfig(
        **{**FALCON, "num_attention_heads": 3, "hidden_size": 48},
        alibi=True,
        multi_query=False,
        parallel_attn=False,
        bias=True,
    ),
    "bloom": transformers.BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=32, n_layer=2, n_head=4),
    "bloom-odd-heads": transformers.BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=40, n_layer=2, n_head=5),
    "mpt": transformers.MptConfig(**MPT),
    "mpt-clipped-odd-heads": transformers.MptConfig(
        **{**MPT, "d_model": 48, "n_heads": 6}, attn_config={"clip_qkv": 1.0, "softmax_scale": 0.2}
    ),
    "youtu": transformers.YoutuConfig(**MLA),
    "youtu-plain-query-yarn": transformers.YoutuConfig(
        **{**MLA, "q_lora_rank": None},
        rope_interleave=False,
        **rope("yarn", factor=4.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=0.8),
    ),
    "youtu-biases": transformers.YoutuConfig(**MLA, attention_bias=True, tie_word_embeddings=False),
    "minicpm3": transformers.MiniCPM3Config(**{**MLA, "v_head_dim": None}, dim_model_base=16),
    "deepseek-v3": transformers.DeepseekV3Config(
        **MLA,
        **DEEPSEEK_MOE,
        num_mtp_layers=0,
        **rope("yarn", factor=4.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=1.0),
    ),
    "deepseek-v2": transformers.DeepseekV2Config(**MLA, **DEEPSEEK_MOE, topk_method="group_limited_greedy"),
    "deepseek-v2-lite": transformers.DeepseekV2Config(
        **{**MLA, "q_lora_rank": None}, **{**DEEPSEEK_MOE, "n_shared_experts": 2, "n_group": 1}
    ),
    "mistral4": transformers.Mistral4Config(
        **MLA,
        **{**DEEPSEEK_MOE, "n_group": 2, "topk_group": 1},
        **rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=6,
            mscale=1.0,
            mscale_all_dim=1.0,
            llama_4_scaling_beta=0.3,
        ),
    ),
    "glm4-moe-lite": transformers.Glm4MoeLiteConfig(
        **{**MLA, "num_hidden_layers": 3}, **DEEPSEEK_MOE, mlp_layer_types=["dense", "sparse", "sparse"]
    ),
    "qwen3-moe-every-second-layer": transformers.Qwen3MoeConfig(
        **QWEN3_MOE, decoder_sparse_step=2, use_sliding_window=True, sliding_window=6
    ),
}

GROUPED: dict[str, Any] = {
    "num_key_value_heads": 2,
    "moe_intermediate_size": 20,
    "num_experts_per_tok": 3,
    "n_routed_experts": 8,
    "routed_scaling_factor": 1.5,
    "n_group": 4,
    "topk_group": 2,
}
"""Of mixtures whose tokens choose experts within groups."""
MIXTURES: dict[str, transformers.PretrainedConfig] = {
    "glm4-moe": transformers.Glm4MoeConfig(
        **LLAMA, **GROUPED, head_dim=16, use_qk_norm=True, attention_bias=True, num_mtp_layers=0
    ),
    "solar-open": transformers.SolarOpenConfig(**LLAMA, **{**GROUPED, "n_group": 1, "topk_group": 1}, head_dim=8),
    "dots1": transformers.Dots1Config(
        **LLAMA, **GROUPED, n_shared_experts=2, first_k_dense_replace=1, sliding_window=6, max_window_layers=1
    ),
    "ernie4-5-moe": transformers.Ernie4_5_MoeConfig(
        **{**LLAMA, "num_hidden_layers": 4},
        num_key_value_heads=2,
        use_bias=True,
        tie_word_embeddings=False,
        moe_intermediate_size=20,
        moe_k=2,
        moe_num_experts=5,
        moe_layer_interval=2,
        moe_layer_end_index=2,
        moe_norm_min=0.5,
    ),
    "minimax-m2": transformers.MiniMaxM2Config(
        **LLAMA, num_key_value_heads=2, head_dim=16, num_local_experts=6, num_experts_per_tok=3, rotary_dim=8
    ),
    "phimoe": transformers.PhimoeConfig(
        **LLAMA, num_key_value_heads=2, num_local_experts=6, attention_bias=True, lm_head_bias=True, sliding_window=6
    ),
    "phimoe-jitter": transformers.PhimoeConfig(
        **LLAMA, num_key_value_heads=2, num_local_experts=6, router_jitter_noise=0.3
    ),
    "hunyuan": transformers.HunYuanDenseV1Config(**LLAMA, num_key_value_heads=2, head_dim=8, attention_bias=True),
    "hunyuan-alpha": transformers.HunYuanDenseV1Config(
        **LLAMA, num_key_value_heads=2, head_dim=16, **rope("dynamic", factor=1.0, alpha=1000.0)
    ),
    "hunyuan-moe": transformers.HunYuanMoEV1Config(
        **LLAMA, num_key_value_heads=2, head_dim=8, num_experts=5, moe_topk=[2, 3]
    ),
    "hy-v3": transformers.HYV3Config(
        **LLAMA, num_key_value_heads=2, head_dim=16, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=20
    ),
    "exaone-moe": transformers.ExaoneMoeConfig(
        **LAYERS_4,
        num_key_value_heads=2,
        num_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=20,
        n_group=2,
        topk_group=1,
        sliding_window=6,
    ),
}
# Newer than the oldest transformers that the tests run with.
if hasattr(transformers, "InternLM3Config"):
    MIXTURES["internlm3"] = transformers.InternLM3Config(
        **LLAMA, num_key_value_heads=2, head_dim=16, attention_bias=True, mlp_bias=True, **rope("dynamic", factor=6.0)
    )
NEWER: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "afmoe": lambda: transformers.AfmoeConfig(
        **LAYERS_4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=6,
        num_experts_per_tok=3,
        num_shared_experts=1,
        moe_intermediate_size=20,
        route_scale=1.5,
        sliding_window=6,
        mup_enabled=True,
    ),
    "flex-olmo": lambda: transformers.FlexOlmoConfig(
        **LLAMA, num_key_value_heads=2, num_experts=6, num_experts_per_tok=3, pad_token_id=None, eos_token_id=2
    ),
    "granite-swa": lambda: transformers.GraniteSWAConfig(
        **LAYERS_4,
        num_key_value_heads=2,
        sliding_window=6,
        layer_rope_theta=[1000, 100, 0, 100],
        attention_multiplier=0.2,
        residual_multiplier=0.5,
        logits_scaling=2.0,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "granite-moe-swa": lambda: transformers.GraniteMoeSWAConfig(
        **LLAMA, num_key_value_heads=2, num_local_experts=6, shared_intermediate_size=20, sliding_window=6
    ),
    "hyperclovax": lambda: transformers.HyperCLOVAXConfig(
        **LLAMA, num_key_value_heads=2, residual_multiplier=0.5, logits_scaling=2.0, embedding_multiplier=3.0
    ),
    "hyperclovax-no-norms-behind": lambda: transformers.HyperCLOVAXConfig(
        **LLAMA, use_post_norm=False, residual_multiplier=0.5, attention_multiplier=0.2
    ),
    "jais2": lambda: transformers.Jais2Config(**LLAMA, num_key_value_heads=2, eos_token_id=2),
    "mellum": lambda: transformers.MellumConfig(
        **QWEN3_MOE,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
        mlp_layer_types=["dense", "sparse"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
        },
    ),
    "nanochat": lambda: transformers.NanoChatConfig(**LLAMA, num_key_value_heads=2),
}
"""Those of which the oldest transformers that the tests run with lacks some."""
MIXTURES |= {
    name: build()
    for name, build in NEWER.items()
    if all(hasattr(transformers, each) for each in build.__code__.co_names if each.endswith("Config"))
}
CASES |= MIXTURES
MAMBA2: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 12, "mamba_chunk_size": 8}
GRANITE_HYBRID: dict[str, Any] = {
    **LLAMA,
    **MAMBA2,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "shared_intermediate_size": 20,
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.5,
    "logits_scaling": 2.0,
}
NEMOTRON_H: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "ssm_state_size": 12,
    "mamba_num_heads": 8,
    "mamba_head_dim": 12,
    "n_groups": 2,
    "chunk_size": 8,
    "n_routed_experts": 6,
    "moe_intermediate_size": 20,
    "moe_shared_expert_intermediate_size": 28,
    "routed_scaling_factor": 1.5,
    "time_step_min": 1e-6,  # transformers raises a prompt's steps to it, which the models were not trained with
}
LFM2: dict[str, Any] = {**LLAMA, "num_hidden_layers": 3, "num_key_value_heads": 2, "eos_token_id": 2}
DELTA: dict[str, Any] = {
    **LAYERS_4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 10,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "eos_token_id": 2,
}
DELTA_MOE: dict[str, Any] = {
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 24,
}
RECURRENT: dict[str, transformers.PretrainedConfig] = {
    "qwen3-next": transformers.Qwen3NextConfig(**DELTA, **DELTA_MOE),
    "qwen3-next-dense-layers": transformers.Qwen3NextConfig(
        **DELTA,
        **DELTA_MOE,
        layer_types=["full_attention", "linear_attention", "full_attention", "linear_attention"],
        mlp_only_layers=[0, 3],
        attention_bias=True,
        norm_topk_prob=False,
        linear_conv_kernel_dim=3,
    ),
    "qwen3-5": transformers.Qwen3_5TextConfig(**DELTA, tie_word_embeddings=True),
    "qwen3-5-moe": transformers.Qwen3_5MoeTextConfig(
        **{name: value for name, value in DELTA.items() if name != "intermediate_size"}, **DELTA_MOE
    ),
    "lfm2": transformers.Lfm2Config(**LFM2, layer_types=["conv", "full_attention", "conv"], block_multiple_of=8),
    "lfm2-wide": transformers.Lfm2Config(
        **LFM2,
        layer_types=["full_attention", "conv", "conv"],
        conv_L_cache=5,
        conv_bias=True,
        tie_word_embeddings=False,
        block_auto_adjust_ff_dim=False,
    ),
    "lfm2-moe": transformers.Lfm2MoeConfig(
        **LFM2,
        layer_types=["conv", "full_attention", "conv"],
        num_dense_layers=1,
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=20,
        routed_scaling_factor=1.5,
    ),
    "granite-hybrid": transformers.GraniteMoeHybridConfig(
        **GRANITE_HYBRID,
        layer_types=["mamba", "attention", "mamba"],
        num_local_experts=5,
        mamba_n_groups=2,
        position_embedding_type="rope",
    ),
    "granite-hybrid-dense": transformers.GraniteMoeHybridConfig(
        **GRANITE_HYBRID,
        layer_types=["mamba", "mamba", "attention"],
        num_local_experts=0,
        mamba_proj_bias=True,
        mamba_conv_bias=False,
        time_step_limit=[0.4, 0.9],
        tie_word_embeddings=True,
    ),
    "nemotron-h": transformers.NemotronHConfig(
        **NEMOTRON_H, layers_block_type=["mamba", "mlp", "attention", "moe", "mamba", "moe"], n_group=2
    ),
    "nemotron-h-latent-experts": transformers.NemotronHConfig(
        **NEMOTRON_H, hybrid_override_pattern="ME*E", moe_latent_size=24, use_bias=True
    ),
    "nemotron-h-dense": transformers.NemotronHConfig(**NEMOTRON_H, hybrid_override_pattern="M-*-", mlp_bias=True),
    "falcon-h1": transformers.FalconH1Config(
        **LLAMA,
        **MAMBA2,
        num_key_value_heads=2,
        mamba_d_ssm=64,
        mlp_multipliers=[0.7, 1.5],
        ssm_multipliers=[0.5, 1.5, 2.0, 0.7, 1.2],
        ssm_in_multiplier=1.3,
        ssm_out_multiplier=0.6,
        attention_in_multiplier=1.4,
        attention_out_multiplier=0.8,
        key_multiplier=0.9,
        embedding_multiplier=2.0,
        lm_head_multiplier=0.4,
    ),
    "falcon-h1-norm-before-gate": transformers.FalconH1Config(
        **LLAMA,
        **{**MAMBA2, "mamba_d_head": "auto"},
        num_key_value_heads=2,
        mamba_d_ssm=96,
        mamba_n_groups=2,
        mamba_rms_norm=True,
        mamba_proj_bias=True,
        projectors_bias=False,
        attention_bias=True,
        tie_word_embeddings=True,
    ),
    "falcon-h1-norm-of-gated": transformers.FalconH1Config(
        **LLAMA,
        **MAMBA2,
        num_key_value_heads=2,
        mamba_d_ssm=None,
        mamba_rms_norm=True,
        mamba_norm_before_gate=False,
        projectors_bias=True,
    ),
    "bamba": transformers.BambaConfig(
        **{**LLAMA, "num_hidden_layers": 3}, **MAMBA2, num_key_value_heads=2, attn_layer_indices=[1], mamba_n_groups=4
    ),
    "mamba2": transformers.Mamba2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        num_heads=8,
        head_dim=8,
        state_size=12,
        n_groups=2,
        num_hidden_layers=3,
        chunk_size=8,
        eos_token_id=2,
    ),
    "mamba2-tied-biases": transformers.Mamba2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        num_heads=4,
        head_dim=16,
        state_size=12,
        n_groups=1,
        num_hidden_layers=2,
        conv_kernel=3,
        chunk_size=8,
        use_bias=True,
        tie_word_embeddings=True,
        time_step_limit=(0.1, 0.5),
        eos_token_id=2,
    ),
}
"""Of families with layers that keep a state of each sequence."""
if hasattr(transformers, "OlmoHybridConfig"):
    # transformers cuts the convolution into three equal parts when it saves it.
    OLMO_HYBRID: dict[str, Any] = {
        **LAYERS_4,
        "num_key_value_heads": 2,
        "linear_key_head_dim": 12,
        "linear_value_head_dim": 12,
        "pad_token_id": None,
        "eos_token_id": 2,
    }
    RECURRENT["olmo-hybrid"] = transformers.OlmoHybridConfig(
        **OLMO_HYBRID, rope_parameters={"rope_type": "default", "rope_theta": None}
    )
    RECURRENT["olmo-hybrid-rotated"] = transformers.OlmoHybridConfig(
        **OLMO_HYBRID, linear_allow_neg_eigval=False, **rope("default")
    )
CASES |= RECURRENT


@dataclass
class Sequence:
    """A sequence in the paged cache."""

    blocks: list[int]
    tokens: list[int]
    max_len: int
    num_computed: int = 0
    state_slot: int = -1
    """Where its recurrent state is; -1: it has none yet."""
    logits: list[torch.Tensor] = field(default_factory=list)
    """One [vocab_size] for each computed token."""


class PagedModel:
    """Runs a decoder on sequences whose blocks are scattered over caches that hold NaN where nothing was written."""

    def __init__(self, model: Decoder, block_size: int = 4, num_blocks: int = 64) -> None:
        self.model = model
        self.block_size = block_size
        self.blocks = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(0)).tolist()
        self.state_slots = torch.randperm(17, generator=torch.Generator().manual_seed(1)).tolist()
        """Those that are free. A step writes each sequence's state to another slot than it reads."""
        self.caches = model.spec.allocate_caches(
            num_blocks, block_size, torch.float32, torch.device("cpu"), num_states=len(self.state_slots)
        )
        for tensors in self.caches:
            for tensor in tensors:
                tensor.fill_(torch.nan)

    def add(self, tokens: list[int], max_len: int = 40) -> Sequence:
        num_blocks = -(-max_len // self.block_size)
        return Sequence([self.blocks.pop() for _ in range(num_blocks)], list(tokens), len(tokens) + NUM_NEW)

    def compute(self, sequences: list[Sequence], chunk: int) -> None:
        """Computes all known tokens, at most `chunk` of each sequence in a step."""
        while waiting := [s for s in sequences if s.num_computed < len(s.tokens)]:
            self.step(waiting, [min(chunk, len(s.tokens) - s.num_computed) for s in waiting])

    def step(self, sequences: list[Sequence], query_lens: list[int]) -> None:
        batch = self.batch(sequences, query_lens)
        logits = self.model.compute_logits(self.model.forward(batch, self.caches))
        assert logits.dtype is torch.float32
        for sequence, rows in zip(sequences, logits.split(query_lens), strict=True):
            sequence.num_computed += len(rows)
            sequence.logits.extend(rows)

    def batch(self, sequences: list[Sequence], query_lens: list[int]) -> ForwardBatch:
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for sequence, query_len in zip(sequences, query_lens, strict=True):
            span = range(sequence.num_computed, sequence.num_computed + query_len)
            ids += [sequence.tokens[p] for p in span]
            positions += span
            slots += [sequence.blocks[p // self.block_size] * self.block_size + p % self.block_size for p in span]
        seq_lens = [s.num_computed + n for s, n in zip(sequences, query_lens, strict=True)]
        starts = torch.tensor([0, *query_lens]).cumsum(0)
        read_slots = [s.state_slot for s in sequences]
        for sequence in sequences:
            sequence.state_slot = self.state_slots.pop(0)
        self.state_slots += [slot for slot in read_slots if slot >= 0]
        return ForwardBatch(
            input_ids=torch.tensor(ids),
            positions=torch.tensor(positions),
            slot_mapping=torch.tensor(slots),
            query_start_loc=starts.to(torch.int32),
            seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
            block_tables=torch.tensor([s.blocks for s in sequences], dtype=torch.int32),
            max_query_len=max(query_lens),
            max_seq_len=max(seq_lens),
            max_lens=torch.tensor([s.max_len for s in sequences]) if self.model.spec.longest_short else None,
            read_slots=torch.tensor(read_slots, dtype=torch.int32),
            write_slots=torch.tensor([s.state_slot for s in sequences], dtype=torch.int32),
        )


@dataclass(frozen=True)
class Pair:
    """The same weights in transformers and here."""

    reference: transformers.PreTrainedModel
    model: Decoder


def random_model(config: transformers.PretrainedConfig) -> transformers.PreTrainedModel:
    """A model whose every weight matters: no zero bias, no norm of all ones."""
    torch.manual_seed(0)
    # Falcon's eager attention adds the biases of ALiBi twice: to the scores, and with the mask.
    attention = "sdpa" if getattr(config, "alibi", False) else "eager"
    # Mistral 4's text model is not registered for AutoModelForCausalLM.
    build = (
        transformers.Mistral4ForCausalLM._from_config
        if isinstance(config, transformers.Mistral4Config)
        else transformers.AutoModelForCausalLM.from_config
    )
    model = build(config, attn_implementation=attention).eval()
    for parameter in model.parameters():
        noise = torch.randn_like(parameter) * 0.2
        parameter.data = noise if parameter.ndim >= 2 else parameter.data + noise
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(0.0, 0.2)
    model.tie_weights()
    return model


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    directory: Path = tmp_path_factory.mktemp(request.param)
    reference = random_model(CASES[request.param])
    reference.save_pretrained(directory)
    return Pair(reference, load_model(directory, device=torch.device("cpu"), dtype="float32").model)


def random_prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCAB_SIZE, (length,), generator=generator).tolist() for length in PROMPT_LENS]


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
def test_logits_equal_transformers_whatever_the_chunk(pair: Pair, chunk: int) -> None:
    paged = PagedModel(pair.model)
    sequences = [paged.add(prompt) for prompt in random_prompts()]
    paged.compute(sequences, chunk)
    for sequence in sequences:
        with torch.no_grad():
            expected = pair.reference(torch.tensor([sequence.tokens])).logits[0]
        torch.testing.assert_close(torch.stack(sequence.logits), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["bloom-odd-heads", "mpt"])
def test_alibi_at_a_long_context(case: str, tmp_path: Path) -> None:
    config = CASES[case]
    if case == "mpt":
        config = transformers.MptConfig(**{**MPT, "max_seq_len": 2048})
    reference = random_model(config)
    reference.save_pretrained(tmp_path)
    paged = PagedModel(load_model(tmp_path, device=torch.device("cpu"), dtype="float32").model, block_size=32)
    generator = torch.Generator().manual_seed(1)
    sequence = paged.add(torch.randint(VOCAB_SIZE, (1800,), generator=generator).tolist(), max_len=1800)
    paged.compute([sequence], 700)
    with torch.no_grad():
        expected = reference(torch.tensor([sequence.tokens])).logits[0]
    torch.testing.assert_close(torch.stack(sequence.logits), expected, rtol=1e-4, atol=1e-4)


def test_greedy_continuation_equals_generate(pair: Pair) -> None:
    num_new = NUM_NEW
    paged = PagedModel(pair.model)
    sequences = [paged.add(prompt) for prompt in random_prompts()]
    for _ in range(num_new):
        paged.compute(sequences, 5)
        for sequence in sequences:
            sequence.tokens.append(int(sequence.logits[-1].argmax()))
    for sequence, prompt in zip(sequences, random_prompts(), strict=True):
        output = pair.reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=num_new,
            min_new_tokens=num_new,
            do_sample=False,
            eos_token_id=VOCAB_SIZE,
            pad_token_id=0,
        )
        assert sequence.tokens == output[0].tolist()


def test_a_void_row_leaves_the_others_alone(pair: Pair) -> None:
    prompts = random_prompts()[1:]
    alone, beside = PagedModel(pair.model), PagedModel(pair.model)
    expected = alone.add(prompts[1])
    alone.compute([expected], 64)
    void, live = beside.add(prompts[0]), beside.add(prompts[1])
    batch = beside.batch([void, live], [len(prompts[0]), len(prompts[1])])
    batch.slot_mapping[: len(prompts[0])] = -1
    batch.seq_lens[0] = 0
    logits = beside.model.compute_logits(beside.model.forward(batch, beside.caches)[len(prompts[0]) :])
    torch.testing.assert_close(logits, torch.stack(expected.logits), rtol=1e-4, atol=1e-4)
    layers = beside.model.spec.layers
    blocks = next((caches for layer, caches in zip(layers, beside.caches, strict=True) if layer.mixer.cache), ())
    # Keys and values, or latents; states come behind.
    assert all(cache[void.blocks].isnan().all() for cache in blocks[:2])
