"""The files a router needs to tokenize, as GetModelFiles sends them."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from pagewire.v1 import shard_pb2
from pagewire_common.model_files import SETTINGS_FILE, TEMPLATE_FILE, TEMPLATE_FOLDER, TOKENIZER_FILE

from pagewire_shard.loading.tokenizer_resolver import resolve_tokenizer

FILE_NAMES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    TEMPLATE_FILE,
    "chat_template.json",
)
CHUNK_BYTES = 1 << 20


def collect_model_files(directory: Path, model: str = "") -> dict[str, bytes]:
    """Content by name. A model that comes without a tokenizer has no tokenizer.json: it serves token ids.

    model: what the directory was found by. Raises CorruptTokenizer if no tokenizer comes out of its files.
    """
    files = {name: (directory / name).read_bytes() for name in FILE_NAMES if (directory / name).is_file()}
    templates = directory.glob(f"{TEMPLATE_FOLDER}*.jinja")
    files |= {path.relative_to(directory).as_posix(): path.read_bytes() for path in sorted(templates)}
    tokenizer = resolve_tokenizer(directory, model)
    if tokenizer is not None:
        files[TOKENIZER_FILE] = tokenizer.serialized
        if tokenizer.settings is not None:
            files[SETTINGS_FILE] = json.dumps(tokenizer.settings).encode()
    return files


def chunk_messages(files: dict[str, bytes]) -> Iterator[shard_pb2.ModelFileChunk]:
    """The files in chunks of at most CHUNK_BYTES, each file's last chunk with its SHA-256."""
    for name, content in files.items():
        last_start = max(len(content) - 1, 0) // CHUNK_BYTES * CHUNK_BYTES
        for start in range(0, last_start + 1, CHUNK_BYTES):
            chunk = shard_pb2.ModelFileChunk(name=name, data=content[start : start + CHUNK_BYTES])
            if start == last_start:
                chunk.sha256 = hashlib.sha256(content).digest()
            yield chunk
