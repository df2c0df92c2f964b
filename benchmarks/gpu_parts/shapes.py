"""The models of the whole-engine measurements: their shapes as config.json, and what a step must read of them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

BYTES_PER_ELEMENT = 2
END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder of Llama's family; with num_experts, of Qwen3-MoE's."""

    name: str
    num_layers: int
    hidden_size: int
    mlp_size: int
    """Intermediate size, of each expert if there are experts."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool
    num_experts: int = 0
    top_k: int = 0
    max_position: int = 131_072

    def expected_experts(self, num_tokens: int) -> float:
        """Experts that num_tokens hit in one layer, each token top_k different ones at random."""
        missed: float = (1 - self.top_k / self.num_experts) ** num_tokens
        return self.num_experts * (1 - missed)

    def weight_bytes(self, num_tokens: int) -> float:
        """Weights that a step of num_tokens tokens reads: all matrices and the output projection, of the experts those
        that are hit; of the token embeddings only rows."""
        query_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        layer = self.hidden_size * (2 * query_size + 2 * kv_size)
        mlp = 3.0 * self.hidden_size * self.mlp_size
        if self.num_experts:
            mlp = mlp * self.expected_experts(num_tokens) + self.hidden_size * self.num_experts
        return BYTES_PER_ELEMENT * (self.num_layers * (layer + mlp) + self.vocab_size * self.hidden_size)

    @property
    def resident_bytes(self) -> int:
        """All weights."""
        num_mlps = max(1, self.num_experts)
        layer = self.hidden_size * (2 * self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        layer += num_mlps * 3 * self.hidden_size * self.mlp_size
        num_tables = 1 if self.tied else 2
        return BYTES_PER_ELEMENT * (self.num_layers * layer + num_tables * self.vocab_size * self.hidden_size)

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * BYTES_PER_ELEMENT

    def flops_per_token(self, context: float) -> float:
        """Multiplications and additions of one token at this context length, without the output projection."""
        layer = self.hidden_size * (2 * self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        layer += 3 * self.hidden_size * self.mlp_size * max(1, self.top_k)
        return self.num_layers * (2.0 * layer + 4.0 * self.num_heads * self.head_dim * context)

    def hf_config(self) -> dict[str, Any]:
        """config.json."""
        common = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.mlp_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_position,
            "rms_norm_eps": 1e-6,
            "rope_theta": 500_000.0,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "tie_word_embeddings": self.tied,
            "dtype": "bfloat16",
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
        if not self.num_experts:
            return common | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
        return common | {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "moe_intermediate_size": self.mlp_size,
            "num_experts": self.num_experts,
            "num_experts_per_tok": self.top_k,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }

    def tiny(self) -> "Shape":
        """The same kind of model at a size that runs anywhere."""
        experts = (8, 2) if self.num_experts else (0, 0)
        return Shape(self.name, 2, 64, 96, 4, 2, 16, 600, self.tied, *experts, max_position=2048)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llama-8b", 32, 4096, 14_336, 32, 8, 128, 128_256, tied=False),
        Shape("llama-1b", 16, 2048, 8192, 32, 8, 64, 128_256, tied=True),
        Shape("qwen3-30b-a3b", 48, 2048, 768, 32, 4, 128, 151_936, tied=False, num_experts=128, top_k=8),
    )
}
"""Llama-3.1-8B, Llama-3.2-1B and Qwen3-30B-A3B."""


def model_directory(shape: Shape, folder: Path) -> Path:
    """A directory with config.json and a tokenizer, to be served with dummy weights."""
    path = folder / shape.name
    if not (path / "tokenizer.json").exists():
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps(shape.hf_config(), indent=2))
        (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": END_OF_TEXT}))
        _tokenizer(shape.vocab_size).save(str(path / "tokenizer.json"))
    return path


def _tokenizer(vocab_size: int) -> Tokenizer:
    """A byte-level BPE of exactly vocab_size tokens whose merges spell all short words: nothing has to be trained."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocab = {token: index for index, token in enumerate([END_OF_TEXT, *alphabet])}
    merges: list[tuple[str, str]] = []
    words = letters
    while len(vocab) < vocab_size:
        pairs = [(word, letter) for word in words for letter in letters][: vocab_size - len(vocab)]
        for pair in pairs:
            vocab["".join(pair)] = len(vocab)
        merges += pairs
        words = ["".join(pair) for pair in pairs]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer
