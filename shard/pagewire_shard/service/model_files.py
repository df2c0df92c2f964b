"""The files a router needs to tokenize, as GetModelFiles sends them."""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

from pagewire.v1 import shard_pb2

from pagewire_shard.errors import CorruptTokenizer

logger = logging.getLogger(__name__)

TOKENIZER_FILE = "tokenizer.json"
FILE_NAMES = (
    "config.json",
    "generation_config.json",
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
SLOW_TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "vocab.txt", "tekken.json")
"""Older forms, each of which transformers can turn into a tokenizer.json."""
CHUNK_BYTES = 1 << 20


def collect_model_files(directory: Path) -> dict[str, bytes]:
    """Content by name. A model that comes without a tokenizer has no tokenizer.json: it serves token ids.

    Raises CorruptTokenizer if there are tokenizer files that cannot be converted.
    """
    files = {name: (directory / name).read_bytes() for name in FILE_NAMES if (directory / name).is_file()}
    templates = directory.glob("additional_chat_templates/*.jinja")
    files |= {path.relative_to(directory).as_posix(): path.read_bytes() for path in sorted(templates)}
    if TOKENIZER_FILE not in files and any((directory / name).is_file() for name in SLOW_TOKENIZER_FILES):
        files[TOKENIZER_FILE] = convert_tokenizer(directory)
    return files


def convert_tokenizer(directory: Path) -> bytes:
    """An older tokenizer as tokenizer.json, with the special tokens it adds (OPT starts every text with </s>)."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), use_fast=True, local_files_only=True)
        serialized: str = tokenizer.backend_tokenizer.to_str()
    except Exception as error:  # tokenizers raises bare Exceptions
        reason = (str(error).splitlines() or [""])[0]
        raise CorruptTokenizer(
            f"the tokenizer in {directory} cannot be read ({type(error).__name__}: {reason[:200]}); "
            f"put a {TOKENIZER_FILE} there, or remove its tokenizer files to serve token ids alone"
        ) from error
    logger.info("converted the tokenizer to %s", TOKENIZER_FILE)
    return serialized.encode()


def chunk_messages(files: dict[str, bytes]) -> Iterator[shard_pb2.ModelFileChunk]:
    """The files in chunks of at most CHUNK_BYTES, each file's last chunk with its SHA-256."""
    for name, content in files.items():
        last_start = max(len(content) - 1, 0) // CHUNK_BYTES * CHUNK_BYTES
        for start in range(0, last_start + 1, CHUNK_BYTES):
            chunk = shard_pb2.ModelFileChunk(name=name, data=content[start : start + CHUNK_BYTES])
            if start == last_start:
                chunk.sha256 = hashlib.sha256(content).digest()
            yield chunk
