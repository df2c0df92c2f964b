"""Reads the tensors of a safetensors checkpoint, one file or several with an index, one tensor at a time."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from pagewire_shard.errors import CorruptWeights, ModelNotFound

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SUPPORTED_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True, slots=True)
class CheckpointTensor:
    """One tensor, mapped from its file: valid while it is referenced, read from disk when it is touched."""

    path: Path
    name: str
    value: torch.Tensor


def read_tensors(model_dir: Path) -> Iterator[CheckpointTensor]:
    """All tensors of the checkpoint in `model_dir`, in the order of their files.

    Raises:
        ModelNotFound: there is no safetensors checkpoint.
        CorruptWeights: a file is missing, truncated or damaged, or a tensor's type is not supported.
    """
    for path in checkpoint_files(model_dir):
        yield from _read_file(path)


def stored_dtype(model_dir: Path) -> str:
    """The element type of the checkpoint's first tensor, such as "bfloat16". Raises as read_tensors does."""
    for tensor in read_tensors(model_dir):
        return str(tensor.value.dtype).removeprefix("torch.")
    raise CorruptWeights(f"{model_dir}: the checkpoint has no tensors")


def checkpoint_files(model_dir: Path) -> list[Path]:
    """The checkpoint's safetensors files. Raises as read_tensors does."""
    single, index = model_dir / SINGLE_FILE, model_dir / INDEX_FILE
    if single.is_file():
        return [single]
    if index.is_file():
        return _indexed_files(index)
    others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.gguf") for path in model_dir.glob(pattern))
    found = f"; found {', '.join(others)}, which must be converted first" if others else ""
    raise ModelNotFound(f"model directory {model_dir} has neither {SINGLE_FILE} nor {INDEX_FILE}{found}")


def _indexed_files(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CorruptWeights(f"{index}: is not an index of safetensors files: {error!r}") from error
    files = [index.parent / str(name) for name in names]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise CorruptWeights(f"{index}: names files that do not exist: {', '.join(missing)}")
    return files


def _read_file(path: Path) -> Iterator[CheckpointTensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118 - the file is no mapping
                tensor = file.get_tensor(name)
                if tensor.dtype not in SUPPORTED_DTYPES:
                    raise CorruptWeights(
                        f"{path}: tensor {name!r} is stored as {str(tensor.dtype).removeprefix('torch.')}; "
                        "supported: float32, float16, bfloat16"
                    )
                yield CheckpointTensor(path, name, tensor)
    except (SafetensorError, OSError) as error:
        raise CorruptWeights(f"{path}: cannot be read as safetensors: {error}") from error
