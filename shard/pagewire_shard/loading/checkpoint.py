"""Reads the tensors of a checkpoint one at a time, from safetensors or, if there are none, from PyTorch files.

A checkpoint is one file, or several with an index that says which file holds which tensor; a copy of a tensor in
another file is stale and skipped. PyTorch files are pickles: they are read only with torch's restricted loader, which
builds tensors and runs no code that the file names.
"""

import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from pagewire_shard.errors import CorruptWeights, ModelNotFound

SAFETENSORS_FILE, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH_FILE, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True, slots=True)
class CheckpointTensor:
    """One tensor, mapped from its file; its data is read from disk on first access."""

    path: Path
    name: str
    value: torch.Tensor

    def check_usable(self, wanted: torch.dtype = torch.float32) -> None:
        """Raises CorruptWeights if the tensor is not dense, or its element type does not serve as `wanted`: each of
        FLOAT_DTYPES serves as any other, all other types only as themselves."""
        if self.value.layout is not torch.strided or self.value.device.type != "cpu":
            kind = f"{self.value.layout} on {self.value.device}".replace("torch.", "")
            raise CorruptWeights(f"{self.path}: tensor {self.name!r} is stored as {kind}; supported: dense tensors")
        is_float = wanted in FLOAT_DTYPES
        if self.value.dtype not in (FLOAT_DTYPES if is_float else (wanted,)):
            stored = _dtype_name(self.value.dtype)
            supported = "float32, float16, bfloat16" if is_float else _dtype_name(wanted)
            raise CorruptWeights(f"{self.path}: tensor {self.name!r} is stored as {stored}; supported: {supported}")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """One file of a checkpoint."""

    path: Path
    names: frozenset[str] | None
    """The tensors that the index assigns to this file; None: there is no index, and the file's tensors are all used."""

    def tensors(self) -> Iterator[CheckpointTensor]:
        """The tensors to use. Raises CorruptWeights if the file cannot be read or lacks one of them."""
        read = _read_safetensors if self.path.suffix == ".safetensors" else _read_torch
        found = set()
        for tensor in read(self.path, self.names):
            found.add(tensor.name)
            yield tensor
        missing = sorted((self.names or frozenset()) - found)
        if missing:
            raise CorruptWeights(f"{self.path}: lacks {len(missing)} tensors of the index, such as {missing[0]!r}")


def stored_dtype(files: Sequence[CheckpointFile]) -> str:
    """The element type of the first floating-point tensor, such as "bfloat16". Raises CorruptWeights."""
    for file in files:
        for tensor in file.tensors():
            if tensor.value.is_floating_point():
                return _dtype_name(tensor.value.dtype)
    raise CorruptWeights(f"{files[0].path}: the checkpoint has no floating-point tensors")


def checkpoint_files(model_dir: Path, *, allow_torch: bool = True) -> list[CheckpointFile]:
    """The checkpoint's files. Safetensors are preferred; PyTorch files are read only if `allow_torch`.

    Raises:
        ModelNotFound: there is no checkpoint that may be read.
        CorruptWeights: the index is damaged, or a file that it names is missing.
    """
    formats = [(SAFETENSORS_FILE, SAFETENSORS_INDEX)] + [(TORCH_FILE, TORCH_INDEX)] * allow_torch
    for single, index in formats:
        if (model_dir / single).is_file():
            return [CheckpointFile(model_dir / single, None)]
        if (model_dir / index).is_file():
            return _indexed_files(model_dir / index)
    accepted = " nor ".join(name for names in formats for name in names)
    others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.gguf") for path in model_dir.glob(pattern))
    found = f"; found {', '.join(others)}" if others else ""
    if TORCH_FILE in others or (model_dir / TORCH_INDEX).is_file():
        found += f"; {TORCH_FILE} is read with --load-format auto"
    raise ModelNotFound(f"model directory {model_dir} has neither {accepted}{found}")


def _indexed_files(index: Path) -> list[CheckpointFile]:
    names_by_file: dict[str, set[str]] = {}
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        for name, file in weight_map.items():
            names_by_file.setdefault(file, set()).add(name)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CorruptWeights(f"{index}: is not an index of checkpoint files: {error!r}") from error
    outside = [file for file in names_by_file if not isinstance(file, str) or Path(file).name != file]
    if outside:
        raise CorruptWeights(f"{index}: names files that do not exist: {', '.join(map(str, outside))}")
    missing = sorted(file for file in names_by_file if not (index.parent / file).is_file())
    if missing:
        raise CorruptWeights(f"{index}: names files that do not exist: {', '.join(missing)}")
    return [CheckpointFile(index.parent / file, frozenset(names)) for file, names in sorted(names_by_file.items())]


def _read_safetensors(path: Path, names: frozenset[str] | None) -> Iterator[CheckpointTensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118 - the file is no mapping
                if names is None or name in names:
                    yield CheckpointTensor(path, name, file.get_tensor(name))
    except (SafetensorError, OSError) as error:
        raise CorruptWeights(f"{path}: cannot be read as safetensors: {error}") from error


def _read_torch(path: Path, names: frozenset[str] | None) -> Iterator[CheckpointTensor]:
    tensors = _load_torch(path)
    for name in list(tensors):
        value = tensors.pop(name)
        if isinstance(value, torch.Tensor) and (names is None or name in names):
            yield CheckpointTensor(path, name, value.detach())


def _load_torch(path: Path) -> dict[str, object]:
    try:
        # Files from before PyTorch 1.6 are no zip archives, and cannot be mapped.
        with warnings.catch_warnings(action="ignore"):  # of old pickle protocols: a failure is told as an error
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # A damaged pickle may raise nearly anything.
        raise CorruptWeights(f"{path}: {_why_refused(error)}") from error
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise CorruptWeights(f"{path}: holds a {type(content).__name__}; expected a mapping of tensors by name")
    return dict(content)


def _why_refused(error: Exception) -> str:
    """Names what a pickle would have run, if that is why it was refused."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named is not None:
        return f"refused: it asks to run {named[1]}, and nothing that a checkpoint names is run"
    # The first lines of the restricted loader's errors advise to do without the restriction.
    lines = str(error).partition("WeightsUnpickler error:")[2] or str(error)
    first = next((line.strip() for line in lines.splitlines() if line.strip()), "it ends early")
    return f"cannot be read as a PyTorch checkpoint: {type(error).__name__}: {first}"[:500]
