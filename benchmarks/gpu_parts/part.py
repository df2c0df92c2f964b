"""The parts of the GPU benchmark, and the bench that they share: device, clock, ceilings and model in use."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpu_parts.clock import Clock

Row = dict[str, Any]
"""One line of a table; every value is a number, a text or None."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Limits of this device, measured in the same run."""

    copy_bytes_per_s: float
    """A large device-to-device copy, counting bytes read and bytes written."""
    matmul_flops_per_s: float
    """A large product of matrices in the benchmark's dtype."""

    def seconds(self, num_bytes: float, num_flops: float) -> float:
        """The roofline: the longer of moving the bytes and doing the operations."""
        return max(num_bytes / self.copy_bytes_per_s, num_flops / self.matmul_flops_per_s)


@dataclass(slots=True)
class Bench:
    """The state that parts share. At most one model is on the device; a part that needs the memory releases it."""

    device: torch.device
    dtype: torch.dtype
    tiny: bool
    """Whether sizes are tiny, so that a test can run the benchmark on a CPU; the figures then mean nothing."""
    clock: Clock
    ceilings: Ceilings | None
    folder: Path
    """Folder for files of this run, such as model directories."""
    output_len: int
    """Tokens that each request of a whole workload generates."""
    _model: tuple[str, Any] | None = field(default=None)

    def model(self, name: str, load: Callable[[], Any]) -> Any:
        """The model in use if it is this one, else a new one in its place."""
        if self._model is None or self._model[0] != name:
            self.release_model()
            self._model = (name, load())
        return self._model[1]

    def release_model(self) -> None:
        """Gives back the device memory of the model in use."""
        self._model = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def make_room(self, num_bytes: int) -> None:
        """Releases the model in use if the device has less memory left than that."""
        if self._model is None or self.device.type != "cuda":
            return
        held = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        if torch.cuda.mem_get_info(self.device)[0] + held < num_bytes:
            self.release_model()

    def size(self, full: int, tiny: int) -> int:
        """Returns the size for a real run or for a tiny one."""
        return tiny if self.tiny else full


@dataclass(frozen=True, slots=True)
class Part:
    """One part, which runs independently of the others."""

    name: str
    """Words from the general to the specific, joined by colons."""
    run: Callable[[Bench], Sequence[Row]]
    limit_s: float = 60.0
    """The part is ended when it takes longer."""

    @property
    def group(self) -> str:
        """The first word: parts of a group share a table."""
        return self.name.partition(":")[0]


def select(parts: Sequence[Part], patterns: Sequence[str]) -> list[Part]:
    """The parts that patterns name, each once: in the order of the patterns, so that what is named first runs first.

    A pattern is a part's name, or the first words of several names: "engine" or "engine:llama-8b".

    Raises:
        ValueError: a pattern names none.
    """
    chosen: dict[str, Part] = {}
    for pattern in patterns:
        named = [part for part in parts if part.name == pattern or part.name.startswith(f"{pattern}:")]
        if not named:
            groups = ", ".join(dict.fromkeys(part.group for part in parts))
            raise ValueError(f"no part is named {pattern!r}; groups: {groups}")
        for part in named:
            chosen.setdefault(part.name, part)
    return list(chosen.values())
