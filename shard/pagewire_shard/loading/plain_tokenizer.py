"""Decides whether a model directory's tokenizer.json alone is the tokenizer that transformers' AutoTokenizer builds.

If so, AutoTokenizer is not needed, whose import takes a second. The answer is no whenever it is not certain.
"""

import json
from pathlib import Path
from typing import Any

PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Tokenizer classes for which transformers only loads tokenizer.json and adds missing tokens, if the model's type is
one of PLAIN_MODEL_TYPES."""
PLAIN_MODEL_TYPES = ("llama", "gpt2", "opt", "phi", "qwen3", "qwen3_moe")
"""Does not contain qwen2, for example: its tokenizer is rebuilt whatever class its configuration names."""
TOKEN_FIELDS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TOKEN_LIST_FIELDS = ("additional_special_tokens", "extra_special_tokens")
IDLE_FIELDS = frozenset(
    {
        "tokenizer_class", "model_max_length", "chat_template", "model_input_names", "padding_side", "truncation_side",
        "clean_up_tokenization_spaces", "added_tokens_decoder", *TOKEN_FIELDS, *TOKEN_LIST_FIELDS,
    }
)  # fmt: skip
"""Fields of tokenizer_config.json that do not change the tokenizer, given what is_plain() checks. Others might."""


def is_plain(directory: Path) -> bool:
    """Whether tokenizer.json alone is the tokenizer. False for malformed files, which AutoTokenizer then reports."""
    try:
        return _is_plain(directory)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _is_plain(directory: Path) -> bool:
    model_config, config = _read(directory, "config.json"), _read(directory, "tokenizer_config.json")
    if config.get("tokenizer_class") not in PLAIN_CLASSES or model_config["model_type"] not in PLAIN_MODEL_TYPES:
        return False
    if not config.keys() <= IDLE_FIELDS or (directory / "added_tokens.json").exists():
        return False
    tokenizer = _read(directory, "tokenizer.json")
    # Spaces are cleaned up after decoding, except with byte-pair encoding.
    if config.get("clean_up_tokenization_spaces") and tokenizer["model"]["type"] != "BPE":
        return False
    added = [_token(token) for token in tokenizer["added_tokens"]]
    if any(_token(token) not in added for token in config.get("added_tokens_decoder", {}).values()):
        return False
    special_tokens_map = _read(directory, "special_tokens_map.json") if _has_map(directory) else {}
    texts = {token["content"] for token in added}
    return _named_tokens(config) <= texts and _named_tokens(special_tokens_map) <= texts


def _has_map(directory: Path) -> bool:
    return (directory / "special_tokens_map.json").exists()


def _named_tokens(config: dict[str, Any]) -> set[str]:
    """The text of every token that a configuration names. Raises TypeError or LookupError for a malformed token."""
    tokens = [config[field] for field in TOKEN_FIELDS if config.get(field) is not None]
    for field in TOKEN_LIST_FIELDS:
        entry = config.get(field) or []
        if not isinstance(entry, list):
            raise TypeError(f"{field} is no list")
        tokens += entry
    if not config.keys() <= IDLE_FIELDS:
        raise LookupError("a token of another name")
    return {token["content"] if isinstance(token, dict) else str(token) for token in tokens}


def _token(token: dict[str, Any]) -> dict[str, Any]:
    """The fields of an added token that decide how it is matched."""
    fields = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {field: token[field] for field in fields}


def _read(directory: Path, name: str) -> dict[str, Any]:
    value = json.loads((directory / name).read_bytes())
    if not isinstance(value, dict):
        raise TypeError(f"{name} is no object")
    return value
