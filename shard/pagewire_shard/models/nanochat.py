"""nanochat: an MLP that is not gated, norms without weights, of embeddings, queries and keys too, and heads that turn
the other way round than Llama's."""

from dataclasses import replace
from typing import cast

import torch

from pagewire_shard.layers.attention import AttentionSpec
from pagewire_shard.layers.block import LayerSpec
from pagewire_shard.layers.norm import NormSpec
from pagewire_shard.models.decoder import DecoderSpec
from pagewire_shard.models.family import Family
from pagewire_shard.models.hf_config import ConfigFields
from pagewire_shard.models.llama import LLAMA_DEFAULTS, with_mixers
from pagewire_shard.models.plain_mlp import Biases, plain_names, plain_spec

DEFAULTS: dict[str, object] = {
    **LLAMA_DEFAULTS,
    "vocab_size": 50304,
    "hidden_size": 768,
    "intermediate_size": 8192,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "hidden_act": "relu2",
    "final_logit_softcapping": 15.0,
    "eos_token_id": 1,
}


def _halves_swapped(layer: LayerSpec, num_heads: int) -> torch.Tensor:
    """For each row of all heads the stored one: turning (a, b) one way is turning (b, a) the other way."""
    head_dim = cast(AttentionSpec, layer.mixer).head_dim
    return torch.arange(num_heads * head_dim).view(num_heads, 2, head_dim // 2).flip(1).flatten()


NAMES = replace(
    plain_names("mlp.fc1", "mlp.fc2"),
    row_orders={
        "self_attn.q_proj": lambda layer: _halves_swapped(layer, cast(AttentionSpec, layer.mixer).num_heads),
        "self_attn.k_proj": lambda layer: _halves_swapped(layer, cast(AttentionSpec, layer.mixer).num_kv_heads),
    },
)


def _nanochat(fields: ConfigFields) -> DecoderSpec:
    norm = NormSpec("rms", fields.number("rms_norm_eps"), is_learned=False)
    bias = fields.flag("attention_bias")
    biases = Biases(qkv=bias, o=bias, mlp=False)
    spec = plain_spec(fields, norm, biases, [0] * fields.integer("num_hidden_layers"))
    # Heads are normed behind the rotation, which leaves their lengths as they are.
    spec = with_mixers(spec, lambda _, attention: replace(attention, qk_norm=norm))
    return replace(spec, embedding_norm=norm, logit_softcap=fields.number("final_logit_softcapping", 0.0))


NANOCHAT = Family(_nanochat, NAMES, "nanochat", DEFAULTS)
