"""A model directory's tokenizer as transformers' AutoTokenizer reads it, in the one form that routers read.

A tokenizer is described by up to ten files, and transformers rebuilds some kinds from parts of them. Only the tokenizer
that transformers itself builds is exact, so routers get that one.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from pagewire_common.model_files import TOKENIZER_FILE

from pagewire_shard.errors import CorruptTokenizer
from pagewire_shard.loading.plain_tokenizer import is_plain
from pagewire_shard.loading.transformers_tokenizer import (
    ResolvedTokenizer,
    UnreadableTokenizer,
    read_in_process_of_its_own,
)

logger = logging.getLogger(__name__)

OLDER_FORMS = ("vocab.json", "vocab.txt", "*.model", "*.tiktoken", "tekken.json")
"""Patterns of files, each of which transformers can turn into a tokenizer."""


def resolve_tokenizer(directory: Path, model: str) -> ResolvedTokenizer | None:
    """The tokenizer of a model directory; None if it has no tokenizer files, so that only token ids can be served.

    model: the name by which the directory was found; transformers treats some hub ids specially.

    Raises CorruptTokenizer.
    """
    file = directory / TOKENIZER_FILE
    if not file.is_file() and not any(_older_files(directory)):
        return None
    if file.is_file() and (is_plain(directory) or not _has_readable_config(directory)):
        return ResolvedTokenizer(file.read_bytes(), None)
    try:
        return read_in_process_of_its_own(directory, model)
    except UnreadableTokenizer as reason:
        if _is_readable(file):
            logger.warning("transformers cannot read the tokenizer (%s); %s alone is used", reason, TOKENIZER_FILE)
            return ResolvedTokenizer(file.read_bytes(), None)
        raise CorruptTokenizer(
            f"the tokenizer in {directory} cannot be read ({reason}); "
            f"put a {TOKENIZER_FILE} there, or remove its tokenizer files to serve token ids alone"
        ) from reason


def _has_readable_config(directory: Path) -> bool:
    """Whether config.json is a JSON object. If not, the model's loader reports it."""
    try:
        return isinstance(json.loads((directory / "config.json").read_bytes()), dict)
    except (OSError, ValueError):
        return False


def _older_files(directory: Path) -> Iterator[Path]:
    return (path for pattern in OLDER_FORMS for path in directory.glob(pattern))


def _is_readable(file: Path) -> bool:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(file))
    except Exception:  # tokenizers raises bare Exceptions
        return False
    return True
