"""Tokenizers of any size whose tokens look like those of a real one, made without training."""

import json
import re
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

END_OF_TEXT = "<|endoftext|>"
MAX_TOKEN_CHARS = 12
MAX_CORPUS_BYTES = 8_000_000
_PIECES = re.compile(r" ?[A-Za-z_]+| ?\d{1,3}| ?[^\sA-Za-z_\d]+|\s+")


def tokenizer_json(num_tokens: int) -> str:
    """A byte-level tokenizer.json of exactly num_tokens tokens: the end of text, all bytes, and the most frequent parts
    of words, numbers, punctuation and whitespace in Python's own standard library. It has no merges: it is for what
    looks at the tokens of a vocabulary, not for encoding text."""
    letters = _byte_letters()
    tokens = dict.fromkeys([END_OF_TEXT, *letters.values()])
    for part in _parts():
        if len(tokens) >= num_tokens:
            break
        tokens["".join(letters[byte] for byte in part.encode())] = None
    for number in range(num_tokens - len(tokens)):
        tokens[f"<extra{number}>"] = None
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    content: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [
            {"id": 0, "content": END_OF_TEXT, "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        ],
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": {token: index for index, token in enumerate(tokens)}, "merges": []},
    }
    return json.dumps(content)


def _byte_letters() -> dict[int, str]:
    """The letter that stands for each byte in byte-level tokenizers: itself if it can be printed."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _parts() -> list[str]:
    """Parts of at least two characters, the most frequent first."""
    pieces: Counter[str] = Counter()
    num_bytes = 0
    for source in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        text = source.read_text(encoding="utf-8", errors="ignore")
        pieces.update(_PIECES.findall(text))
        num_bytes += len(text)
        if num_bytes > MAX_CORPUS_BYTES:
            break
    parts: Counter[str] = Counter()
    for piece, count in pieces.items():
        for length in range(2, min(len(piece), MAX_TOKEN_CHARS) + 1):
            for start in range(len(piece) - length + 1):
                parts[piece[start : start + length]] += count
    return [part for part, _ in parts.most_common()]
