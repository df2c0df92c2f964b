"""Random models of a given shape, as Hugging Face directories that every engine can load."""

import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pagewire" / "benchmarks"
END_OF_TEXT = "<|endoftext|>"
MAX_CORPUS_BYTES = 6_000_000


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """The size of a Llama."""

    name: str
    num_layers: int
    hidden_size: int
    mlp_size: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    max_model_len: int = 2048


LLAMA_110M = LlamaShape("llama-110m", 12, 768, 2048, 12, 4, 32_000)
LLAMA_1M = LlamaShape("llama-1m", 2, 128, 512, 4, 2, 2_048)
LLAMA_TINY = LlamaShape("llama-tiny", 1, 32, 64, 2, 1, 512)
SHAPES = {shape.name: shape for shape in (LLAMA_110M, LLAMA_1M, LLAMA_TINY)}


def model_directory(shape: LlamaShape, cache: Path = CACHE) -> Path:
    """A directory with random float32 weights of this shape and a tokenizer; written once, then reused."""
    path = cache / "models" / shape.name
    if not (path / "model.safetensors").exists():
        path.mkdir(parents=True, exist_ok=True)
        _write_tokenizer(path, shape)
        _write_weights(path, shape)
    return path


def _write_weights(path: Path, shape: LlamaShape) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.mlp_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=shape.max_model_len,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(path)


def _write_tokenizer(path: Path, shape: LlamaShape) -> None:
    """A byte-level BPE with exactly vocab_size tokens, trained on Python's own standard library."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    # With a corpus too small for the vocabulary, some ids would decode to nothing.
    tokenizer.add_tokens([f"<extra{index}>" for index in range(shape.vocab_size - tokenizer.get_vocab_size())])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT).save_pretrained(
        path
    )


def _corpus() -> list[str]:
    texts: list[str] = []
    size = 0
    for source in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        texts.append(source.read_text(encoding="utf-8", errors="ignore"))
        size += len(texts[-1])
        if size > MAX_CORPUS_BYTES:
            break
    return texts
