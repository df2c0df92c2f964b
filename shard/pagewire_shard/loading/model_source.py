"""Finds a model's files (the bundled demo, a local directory or the Hugging Face hub) and computes their digest."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pagewire_shard.config import LoadFormat
from pagewire_shard.errors import ModelNotFound

DEMO_MODEL = "demo"
DEMO_MODEL_DIR = Path(__file__).parent.parent / "demo_model"
ACCEPTED = f'give a Hugging Face model directory, a hub id such as "Qwen/Qwen3-0.6B", or "{DEMO_MODEL}"'
CONFIG_FILE = "config.json"
TOKENIZER_PATTERNS = (
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template*",
    "additional_chat_templates/*.jinja",
)
HUB_PATTERNS = [CONFIG_FILE, "generation_config.json", "*.safetensors", "*.safetensors.index.json", *TOKENIZER_PATTERNS]
TORCH_PATTERNS = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]
"""Files to fetch if the model has no safetensors."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
NUM_DIGEST_SAMPLES = 64
DIGEST_SAMPLE_BYTES = 4096
MAX_DIGEST_HEADER_BYTES = 64 << 20
TORCH_DIRECTORY_BYTES = 1 << 20


def resolve_model(model: str, load_format: LoadFormat = "auto") -> Path:
    """The directory of a model, fetched from the hub if it is not a local one. Raises ModelNotFound."""
    directory = DEMO_MODEL_DIR if model == DEMO_MODEL else Path(model).expanduser()
    if directory.is_dir():
        if not (directory / CONFIG_FILE).is_file():
            raise ModelNotFound(f"model {model!r}: the directory has no {CONFIG_FILE}; {ACCEPTED}")
        return directory
    if directory.exists():
        kind = "a GGUF file, which is not supported" if directory.suffix == ".gguf" else "a file"
        raise ModelNotFound(f"model {model!r} is {kind}; {ACCEPTED}")
    if not HUB_ID.fullmatch(model):
        raise ModelNotFound(f"model {model!r}: no such directory; {ACCEPTED}")
    return _fetch(model, load_format)


def model_name(model: str) -> str:
    """The name that clients see by default: the last part of the directory, or the hub id."""
    path = Path(model).expanduser()
    return path.resolve().name if model != DEMO_MODEL and path.is_dir() else model


def _fetch(hub_id: str, load_format: LoadFormat) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        directory = Path(snapshot_download(hub_id, allow_patterns=HUB_PATTERNS))
        if load_format == "auto" and not any(directory.glob("*.safetensors")):
            directory = Path(snapshot_download(hub_id, allow_patterns=TORCH_PATTERNS))
    except GatedRepoError as error:
        raise _missing(hub_id, "the hub wants a login for it (hf auth login)") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise _missing(hub_id, "the Hugging Face hub has no such model") from error
    except OSError as error:
        raise _missing(hub_id, "the Hugging Face hub cannot be reached") from error
    if not (directory / CONFIG_FILE).is_file():
        raise _missing(hub_id, f"the hub's copy has no {CONFIG_FILE}")
    return directory


def _missing(hub_id: str, reason: str) -> ModelNotFound:
    return ModelNotFound(f"model {hub_id!r}: no such directory, and {reason}; {ACCEPTED}")


def model_digest(
    directory: Path, dummy_seed: int | None = None, hf_overrides: Mapping[str, Any] | None = None
) -> bytes:
    """A SHA-256 that differs between models, computed without reading all of their weights.

    Covers configuration and tokenizer files in full, and of each file of weights the name, size, header and some
    evenly spaced pages of data: checkpoints of one architecture may have equal headers. With dummy weights,
    the seed is hashed instead of the files. Fields that replace those of config.json are hashed too.
    """
    digest = hashlib.sha256()
    if hf_overrides:
        digest.update(f"overrides\0{json.dumps(hf_overrides, sort_keys=True)}\0".encode())
    patterns = (CONFIG_FILE, *TOKENIZER_PATTERNS)
    for path in sorted({p for pattern in patterns for p in directory.glob(pattern) if p.is_file()}):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    if dummy_seed is not None:
        digest.update(f"dummy\0{dummy_seed}".encode())
        return digest.digest()
    for path in sorted(directory.glob("*.safetensors")) or sorted(directory.glob("pytorch_model*.bin")):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        digest.update(_sample(path))
    return digest.digest()


def _sample(path: Path) -> bytes:
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            # 8 bytes little-endian length, then the header. The loader reports a damaged length.
            prefix = file.read(8)
            digest.update(prefix)
            digest.update(file.read(min(int.from_bytes(prefix, "little"), size, MAX_DIGEST_HEADER_BYTES)))
        else:
            # A zip archive ends with its directory, which holds a checksum of every tensor.
            file.seek(max(0, size - TORCH_DIRECTORY_BYTES))
            digest.update(file.read())
        for i in range(NUM_DIGEST_SAMPLES):
            file.seek(size * i // NUM_DIGEST_SAMPLES)
            digest.update(file.read(DIGEST_SAMPLE_BYTES))
    return digest.digest()
