"""A model directory's tokenizer as transformers' AutoTokenizer reads it, in the one form that routers read.

What a tokenizer does is spread over up to ten files, and transformers rebuilds some kinds from parts of them. Only its
own result is exact, so that is what routers get.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagewire_shard.errors import CorruptTokenizer
from pagewire_shard.loading.plain_tokenizer import is_plain

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

logger = logging.getLogger(__name__)

TOKENIZER_FILE = "tokenizer.json"
OLDER_FORMS = ("vocab.json", "vocab.txt", "*.model", "*.tiktoken", "tekken.json")
"""Patterns of files, each of which transformers can turn into a tokenizer."""


@dataclass(frozen=True, slots=True)
class ResolvedTokenizer:
    """What a router needs to encode and decode as AutoTokenizer does."""

    serialized: bytes
    """A tokenizer.json."""
    settings: dict[str, Any] | None
    """What a tokenizer.json cannot say; None: nothing is set."""


def resolve_tokenizer(directory: Path, model: str) -> ResolvedTokenizer | None:
    """The tokenizer of a model directory; None if it has no tokenizer files: it serves token ids.

    model: what the directory was found by; transformers knows some hub ids. Raises CorruptTokenizer.
    """
    file = directory / TOKENIZER_FILE
    if not file.is_file() and not any(_older_files(directory)):
        return None
    if file.is_file() and (is_plain(directory) or not _has_readable_config(directory)):
        return ResolvedTokenizer(file.read_bytes(), None)
    try:
        return _load(directory, model)
    except Exception as error:  # transformers and tokenizers raise all kinds, bare Exceptions among them
        reason = _reason(directory, error)
        if _is_readable(file):
            logger.warning("transformers cannot read the tokenizer (%s); %s alone is used", reason, TOKENIZER_FILE)
            return ResolvedTokenizer(file.read_bytes(), None)
        raise CorruptTokenizer(
            f"the tokenizer in {directory} cannot be read ({reason}); "
            f"put a {TOKENIZER_FILE} there, or remove its tokenizer files to serve token ids alone"
        ) from error


def _has_readable_config(directory: Path) -> bool:
    """Without one the model's loader ends the start with an error of its own."""
    try:
        return isinstance(json.loads((directory / "config.json").read_bytes()), dict)
    except (OSError, ValueError):
        return False


def _load(directory: Path, model: str) -> ResolvedTokenizer:
    import transformers

    transformers.logging.set_verbosity_error()
    options = {"local_files_only": True, "trust_remote_code": False, "config": _lean_config(directory, model)}
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(directory), **options)
    backend = tokenizer.backend_tokenizer
    cleans_up = bool(tokenizer.clean_up_tokenization_spaces) and (
        type(backend.model).__name__ != "BPE"
        or tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output
    )
    settings = {
        "clean_up_tokenization_spaces": bool(cleans_up),
        "split_special_tokens": bool(tokenizer.split_special_tokens),
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
    }
    return ResolvedTokenizer(backend.to_str().encode(), settings)


def _lean_config(directory: Path, model: str) -> "PreTrainedConfig | None":
    """What AutoTokenizer looks at of config.json, or None to let it read the file.

    It would import the model's configuration class, and with it some seconds of code that runs models.
    """
    from transformers import PreTrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    raw = json.loads((directory / "config.json").read_bytes())
    class_name = CONFIG_MAPPING_NAMES.get(raw.get("model_type"))
    if class_name is None or "auto_map" in raw:
        return None
    lean_class = type(class_name, (PreTrainedConfig,), {"model_type": raw["model_type"]})
    fields = {name: raw[name] for name in ("tokenizer_class", "model_name") if name in raw}
    config: PreTrainedConfig = lean_class(name_or_path=model, **fields)
    return config


def _older_files(directory: Path) -> Iterator[Path]:
    return (path for pattern in OLDER_FORMS for path in directory.glob(pattern))


def _reason(directory: Path, error: Exception) -> str:
    """One line. Where SentencePiece cannot be read, transformers' own line is about another package."""
    if any(directory.glob("*.model")):
        try:
            from sentencepiece import sentencepiece_model_pb2  # noqa: F401
        except Exception as missing:  # absent, or made for another version of protobuf
            return f"it is read with the package sentencepiece (pip install sentencepiece): {_first_line(missing)}"
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def _is_readable(file: Path) -> bool:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(file))
    except Exception:  # tokenizers raises bare Exceptions
        return False
    return True
