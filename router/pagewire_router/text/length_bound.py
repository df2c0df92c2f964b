"""Bounds the text of one token, so that a text that is far too long is refused without being tokenized."""

import json
import math
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import models

from pagewire_router.text.piece_table import BYTE_LEVEL_ALPHABET

MAX_COMPOSED_CHARS = 4
"""Most characters that composition (NFC, NFKC) makes into one."""
_BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
_LENGTHENING_NORMALIZERS = ("Prepend", "ByteLevel", "Lowercase", "NFD", "NFKD")
_KEEPING_PRE_TOKENIZERS = ("ByteLevel", "Metaspace", "Digits", "UnicodeScripts")


def max_chars_per_token(backend: Backend) -> int | None:
    """An upper bound on the characters of a text for each of its tokens, or None if there is none.

    There is none where unknown text of any length becomes one token or nothing, and where a token swallows the white
    space beside it.
    """
    added = backend.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip for token in added):
        return None
    pre_tokenizers = _steps(backend.pre_tokenizer, "pretokenizers")
    if not all(_keeps_all_text(step) for step in pre_tokenizers):
        return None
    normalizers = _steps(backend.normalizer, "normalizers")
    factor = math.prod(_max_shrinkage(step) for step in normalizers)
    is_byte_level = any(step["type"] == "ByteLevel" for step in (*normalizers, *pre_tokenizers))
    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    if factor == math.inf or not _knows_all_text(backend.model, vocabulary, is_byte_level=is_byte_level):
        return None
    return int(factor) * max(map(len, vocabulary), default=1)


def _steps(component: Any, field: str) -> list[dict[str, Any]]:
    """The description of a normalizer or pre-tokenizer, one entry for each step."""
    if component is None:
        return []
    return list(_flat(json.loads(component.__getstate__()), field))


def _flat(description: dict[str, Any], field: str) -> list[dict[str, Any]]:
    if description["type"] != "Sequence":
        return [description]
    return [step for part in description[field] for step in _flat(part, field)]


def _keeps_all_text(pre_tokenizer: dict[str, Any]) -> bool:
    if pre_tokenizer["type"] in ("Split", "Punctuation"):
        return bool(pre_tokenizer["behavior"] != "Removed")
    return pre_tokenizer["type"] in _KEEPING_PRE_TOKENIZERS


def _max_shrinkage(normalizer: dict[str, Any]) -> float:
    """Most characters that the normalizer makes into one; infinite if it may drop some."""
    kind = normalizer["type"]
    if kind in _LENGTHENING_NORMALIZERS:
        return 1
    if kind in ("NFC", "NFKC"):
        return MAX_COMPOSED_CHARS
    if kind == "Replace" and "String" in normalizer["pattern"] and normalizer["content"]:
        return max(1, math.ceil(len(normalizer["pattern"]["String"]) / len(normalizer["content"])))
    return math.inf


def _knows_all_text(model: models.Model, vocabulary: dict[str, int], *, is_byte_level: bool) -> bool:
    """Whether the model makes at least one token of every character or of every byte."""
    if not isinstance(model, models.BPE) or model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    if model.byte_fallback and all(token in vocabulary for token in _BYTE_TOKENS):
        return True
    if is_byte_level and all(character in vocabulary for character in BYTE_LEVEL_ALPHABET):
        return True
    return model.unk_token in vocabulary and not model.fuse_unk
