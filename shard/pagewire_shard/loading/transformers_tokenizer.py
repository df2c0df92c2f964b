"""Reads a model directory's tokenizer with transformers, in a process of its own.

The import of transformers takes about a second of one core. In the shard's process it would compete with the import of
torch and the loading of weights, and its memory would never be freed.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MAX_REASON_CHARS = 200


@dataclass(frozen=True, slots=True)
class ResolvedTokenizer:
    """What a router needs to encode and decode as AutoTokenizer does."""

    serialized: bytes
    """A tokenizer.json."""
    settings: dict[str, Any] | None
    """Settings that have no place in a tokenizer.json; None: all have their defaults."""


class UnreadableTokenizer(Exception):
    """transformers cannot read the tokenizer; the text says why, in one line."""


def read_in_process_of_its_own(directory: Path, model: str) -> ResolvedTokenizer:
    """The tokenizer as AutoTokenizer reads it. Waits for it, about a second. Raises UnreadableTokenizer."""
    # Modules are found on this process's path, and never in the working directory.
    command = (sys.executable, "-P", "-m", __name__, str(directory), model)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        reader = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=False)
    except OSError as error:
        raise UnreadableTokenizer(f"no process can be started to read it: {error}") from error
    if reader.returncode != 0:
        *_, last_words = ["", *reader.stderr.decode(errors="replace").splitlines()]
        raise UnreadableTokenizer(
            f"the process that reads it ended with status {reader.returncode}: {last_words}"[:MAX_REASON_CHARS]
        )
    head, _, serialized = reader.stdout.partition(b"\n")
    answer = json.loads(head)
    if "reason" in answer:
        raise UnreadableTokenizer(answer["reason"])
    return ResolvedTokenizer(serialized, answer["settings"])


def main(arguments: Sequence[str]) -> None:
    """Writes a line of JSON with the settings, or the reason why there are none, and the tokenizer.json."""
    directory, model = arguments
    # Whatever a library prints must not get into the answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # transformers would import torch, which takes another second, to find models that are not asked for.
    sys.modules["torch"] = None  # type: ignore[assignment]
    head: dict[str, Any]
    try:
        tokenizer = read_tokenizer(Path(directory), model)
    except Exception as error:  # transformers and tokenizers raise all kinds, bare Exceptions among them
        head, serialized = {"reason": _reason(Path(directory), error)}, b""
    else:
        head, serialized = {"settings": tokenizer.settings}, tokenizer.serialized
    with answers:
        answers.write(json.dumps(head).encode() + b"\n" + serialized)


def read_tokenizer(directory: Path, model: str) -> ResolvedTokenizer:
    """The tokenizer as AutoTokenizer reads it. Raises whatever that raises."""
    import transformers

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
    """The fields of config.json that AutoTokenizer reads, or None to let it read the file.

    AutoTokenizer would import the model's configuration class, and with it code that takes some seconds to import.
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


def _reason(directory: Path, error: Exception) -> str:
    """The reason in one line. If SentencePiece is missing, transformers' own message names another package."""
    if any(directory.glob("*.model")):
        try:
            from sentencepiece import sentencepiece_model_pb2  # noqa: F401
        except Exception as missing:  # absent, or made for another version of protobuf
            return f"it is read with the package sentencepiece (pip install sentencepiece): {_first_line(missing)}"
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:MAX_REASON_CHARS]


if __name__ == "__main__":
    main(sys.argv[1:])
