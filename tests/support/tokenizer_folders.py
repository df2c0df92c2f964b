"""Model directories with tokenizers of every kind, as they are found on the hub, each trained on a few lines."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "The capital of France is Paris. Hello world, don't you know we've seen it?",
    "  two  spaces\n and a line\t tab",
    "naïve café 日本語 世界 🙂 😀 한국어 مرحبا שלום สวัสดี नमस्ते",
    "def f(x): return [x ** 2 for x in range(10)] # 12345",
] * 10
PLAIN = {"bos_token": "<s>", "eos_token": "</s>"}


def byte_level(**options: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **options})
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentencepiece_bpe() -> Tokenizer:
    """Llama 2's kind of tokenizer.json: with a normalizer that puts a space before every piece of text."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=[*special, *byte_tokens], limit_alphabet=60, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    description = json.loads(tokenizer.to_str())
    description["added_tokens"] = [token for token in description["added_tokens"] if token["id"] < len(special)]
    tokenizer = Tokenizer.from_str(json.dumps(description))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 4)])
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def write(folder: Path, tokenizer: Tokenizer | None, model_type: str, **config: Any) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))


def plain(folder: Path) -> None:
    """transformers takes tokenizer.json as it is."""
    write(folder, byte_level(), "llama", tokenizer_class="PreTrainedTokenizerFast", pad_token="<pad>", **PLAIN)


def prefix_space(folder: Path) -> None:
    """tokenizer.json says one thing of the space before the first word, the configuration another."""
    config = {"unk_token": "</s>", "add_prefix_space": True, "clean_up_tokenization_spaces": True}
    write(folder, byte_level(), "gpt2", tokenizer_class="GPT2Tokenizer", **config, **PLAIN)


def vocabulary_and_merges(folder: Path) -> None:
    byte_level().model.save(str(folder))
    config = {"unk_token": "</s>", "pad_token": "<pad>", "add_bos_token": True}
    write(folder, None, "opt", tokenizer_class="GPT2Tokenizer", **config, **PLAIN)


def qwen2(folder: Path) -> None:
    """transformers rebuilds it with its own pattern and normalizer."""
    config = {"eos_token": "<|im_end|>", "pad_token": "<pad>", "additional_special_tokens": ["<|im_start|>"]}
    write(folder, byte_level(), "qwen3", tokenizer_class="Qwen2Tokenizer", add_prefix_space=False, **config)


def legacy_llama(folder: Path) -> None:
    """transformers 5 rebuilds it without the normalizer that tokenizer.json has."""
    config = {"unk_token": "<unk>", "legacy": True, "add_bos_token": True, "add_eos_token": False}
    write(folder, sentencepiece_bpe(), "llama", tokenizer_class="LlamaTokenizer", **config, **PLAIN)


def gemma(folder: Path) -> None:
    """Its class adds a <mask> that no file names."""
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    extra = {"image_token": "<image>", "extra_special_tokens": {"boi_token": "<start_of_image>"}}
    write(folder, sentencepiece_bpe(), "gemma", tokenizer_class="GemmaTokenizer", **config, **extra)


def sentencepiece_alone(folder: Path) -> None:
    from sentencepiece import sentencepiece_model_pb2 as messages

    kinds = messages.ModelProto.SentencePiece
    proto = messages.ModelProto()
    pieces = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL), ("<turn>", kinds.USER_DEFINED)]
    pieces += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
    pieces += [(piece, kinds.NORMAL) for piece in ("▁", *"abcdefghijklmnopqrstuvwxyz.,é", "he", "ll", "▁t", "▁th")]
    for rank, (piece, kind) in enumerate(pieces):
        proto.pieces.add(piece=piece, score=-float(rank), type=kind)
    proto.trainer_spec.model_type = messages.TrainerSpec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.unk_id, proto.trainer_spec.bos_id, proto.trainer_spec.eos_id = 0, 1, 2
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
    config = {"unk_token": "<unk>", "add_bos_token": True, "add_eos_token": True, "legacy": False}
    write(folder, None, "llama", tokenizer_class="LlamaTokenizer", **config, **PLAIN)


def tiktoken_alone(folder: Path) -> None:
    pieces = [*(bytes([byte]) for byte in range(256)), b"he", b"ll", b" t", b" th"]
    lines = [base64.b64encode(piece) + b" %d\n" % rank for rank, piece in enumerate(pieces)]
    (folder / "tiktoken.model").write_bytes(b"".join(lines))
    write(folder, None, "llama", tokenizer_class="PreTrainedTokenizerFast", **PLAIN)


def cleaned_unigram(folder: Path) -> None:
    config = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>", "extra_ids": 0}
    write(folder, unigram(), "t5", tokenizer_class="T5Tokenizer", clean_up_tokenization_spaces=True, **config)


def word_piece(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in vocabulary))
    write(folder, None, "bert", tokenizer_class="BertTokenizer", do_lower_case=True, clean_up_tokenization_spaces=True)


def added_tokens_of_all_kinds(folder: Path) -> None:
    """Flags in tokenizer.json, others in the configuration, which also makes an ordinary token special."""
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<tool>"), AddedToken("<turn>", normalized=False), AddedToken("<l>", lstrip=True)])
    first = tokenizer.get_vocab_size()
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": False}
    added = {tokenizer.token_to_id("<turn>"): {**flags, "content": "<turn>", "special": True}}
    for number, changes in enumerate(({}, {"rstrip": True}, {"single_word": True}, {"lstrip": True, "special": True})):
        added[first + number] = {**flags, "content": f"<new{number}>", **changes}
    extra = ["<turn>", {"__type": "AddedToken", **flags, "content": "<listed>", "special": True}]
    decoder = {str(token_id): token for token_id, token in added.items()}
    config = {"added_tokens_decoder": decoder, "extra_special_tokens": extra}
    write(folder, tokenizer, "llama", tokenizer_class="PreTrainedTokenizerFast", **config, **PLAIN)


def older_files_beside_it(folder: Path) -> None:
    """added_tokens.json and special_tokens_map.json complete tokenizer.json; special tokens are read as text."""
    tokenizer = byte_level()
    (folder / "added_tokens.json").write_text(json.dumps({"<tool>": tokenizer.get_vocab_size()}))
    named = {"pad_token": {"content": "<pad2>", "lstrip": True, "normalized": False, "rstrip": False}, **PLAIN}
    names = {**named, "additional_special_tokens": ["<turn>", "<l>"]}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    write(folder, tokenizer, "llama", tokenizer_class="PreTrainedTokenizerFast")


def special_tokens_as_text(folder: Path) -> None:
    config = {"split_special_tokens": True, "cls_token": "<turn>"}
    write(folder, byte_level(), "llama", tokenizer_class="PreTrainedTokenizerFast", **config, **PLAIN)


KINDS: dict[str, Callable[[Path], None]] = {
    function.__name__: function
    for function in (
        *(plain, prefix_space, vocabulary_and_merges, qwen2, legacy_llama, gemma, sentencepiece_alone),
        *(
            tiktoken_alone,
            cleaned_unigram,
            word_piece,
            added_tokens_of_all_kinds,
            older_files_beside_it,
            special_tokens_as_text,
        ),
    )
}
