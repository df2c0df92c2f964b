"""Small random models in Hugging Face format: one for each family and each way its heads may be laid out."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 211
MAX_LEN = 160
END_OF_TEXT = "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
TEXT = (
    "The quick brown fox jumps over the lazy dog. Hello, my name is Anna and I live near the sea. "
    "The capital of France is Paris, the capital of Italy is Rome. The future of machines is what people make of it. "
    "Zürich, café, naïve, 東京, 😀: not every letter is one byte long."
)

_LLAMA: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_LEN,
}
_OPT: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_LEN,
    "word_embed_proj_dim": 32,
}


def family_configs() -> dict[str, transformers.PretrainedConfig]:
    """Name -> configuration."""
    return {
        "llama": transformers.LlamaConfig(**_LLAMA, num_key_value_heads=2),
        "llama-tied": transformers.LlamaConfig(**_LLAMA, tie_word_embeddings=True),
        "llama-odd-heads": transformers.LlamaConfig(
            **{**_LLAMA, "hidden_size": 48, "num_attention_heads": 3}, num_key_value_heads=1, head_dim=16
        ),
        "mistral": transformers.MistralConfig(**_LLAMA, num_key_value_heads=2, head_dim=16, sliding_window=11),
        "qwen2": transformers.Qwen2Config(**_LLAMA, num_key_value_heads=2, tie_word_embeddings=True),
        "qwen3": transformers.Qwen3Config(**_LLAMA, num_key_value_heads=2, head_dim=16),
        "cohere": transformers.CohereConfig(**_LLAMA, num_key_value_heads=2, logit_scale=0.3, use_qk_norm=True),
        "opt": transformers.OPTConfig(**_OPT),
        "deepseek": transformers.DeepseekV3Config(
            **_LLAMA,
            num_key_value_heads=4,
            q_lora_rank=24,
            kv_lora_rank=20,
            qk_nope_head_dim=12,
            qk_rope_head_dim=8,
            v_head_dim=10,
            moe_intermediate_size=20,
            num_experts_per_tok=2,
            n_routed_experts=8,
            n_group=2,
            topk_group=1,
            first_k_dense_replace=1,
            num_mtp_layers=0,
        ),
        "bloom": transformers.BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=40, n_layer=2, n_head=5),
        "gpt2": transformers.GPT2Config(vocab_size=VOCAB_SIZE, n_positions=MAX_LEN, n_embd=32, n_layer=2, n_head=4),
    }


def random_model(config: transformers.PretrainedConfig, seed: int = 0) -> transformers.PreTrainedModel:
    """A model whose every weight matters: no zero bias, no norm of all ones."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        noise = torch.randn_like(parameter) * 0.2
        parameter.data = noise if parameter.ndim == 2 else parameter.data + noise
    model.tie_weights()
    return model


def random_prompts(lengths: tuple[int, ...], seed: int = 1) -> list[list[int]]:
    """Prompts of random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]


def write_tokenizer(directory: Path, vocab_size: int, *, with_bos: bool = False) -> None:
    """A byte-level BPE of exactly vocab_size tokens with a chat template; END_OF_TEXT is token 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_tokens([f"<extra{i}>" for i in range(vocab_size - tokenizer.get_vocab_size())])
    if with_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
        )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(directory)


def write_model(directory: Path, config: transformers.PretrainedConfig, seed: int = 0) -> Path:
    """A directory that can be served: random weights and a tokenizer."""
    random_model(config, seed).save_pretrained(directory)
    write_tokenizer(directory, config.vocab_size, with_bos=config.model_type == "opt")
    return directory


def service_config(max_len: int = 2048) -> transformers.LlamaConfig:
    """A Llama with room for long prompts."""
    return transformers.LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_len,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
