"""A spare process: it has imported what every shard needs, and waits to be told which shard to be.

Importing torch takes most of the time that a small model takes to start. `pagewire serve` keeps a spare, so that a lost
shard is back without that.
"""

import importlib
import json
import os
from contextlib import suppress
from pathlib import Path

STDIN = 0
NAME, SHARD_NAME = b"pagewire-spare", b"pagewire-shard"
"""What the system calls the process when it has imported, and when it is a shard; at most 15 bytes."""
MODULES = (
    "pagewire_common.process_log",
    "pagewire_shard.process",
    "pagewire_shard.startup",
    "pagewire_shard.service.server",
    "pagewire_shard.loading.transformers_tokenizer",
    "pagewire_shard.models.llama",
)
CUDA_MODULES = ("triton", "pagewire_shard.execution.gpu_runner", "pagewire_shard.execution.gpu_memory")
CPU_OPS = (
    "prepare_inputs",
    "rms_norm",
    "rotary_and_cache",
    "paged_attention",
    "activation",
    "packed_linear",
    "sample",
    "append_tokens",
)
"""Ops of nearly every model. Others are left out: kernels that are not cached are compiled on import."""
IMPORTED = "pagewire-spare has imported"
"""Said on standard output when the process can be used: `pagewire serve` waits for it."""


def wait_for_work() -> list[str] | None:
    """Imports, then waits for a line on standard input: a JSON object with the `arguments` of a shard, and its
    `environment`, which is set. Returns the arguments; None: standard input has ended, nobody needs this process.

    The device is not touched: which one it is follows from the environment.
    """
    _import()
    print(IMPORTED, flush=True)
    _set_name(NAME)
    line = _read_line()
    if line is None:
        return None
    work = json.loads(line)
    os.environ.update(work["environment"])
    _set_name(SHARD_NAME)
    return [str(argument) for argument in work["arguments"]]


def _import() -> None:
    for module in MODULES:
        importlib.import_module(module)
    if Path("/proc/driver/nvidia").exists():
        for module in CUDA_MODULES:
            importlib.import_module(module)
    else:
        _import_cpu_kernels()


def _import_cpu_kernels() -> None:
    from pagewire_kernels.cpu.simd import HAS_AVX512

    if HAS_AVX512:
        for op in CPU_OPS:
            importlib.import_module(f"pagewire_kernels.{op}.cpu")


def _read_line() -> bytes | None:
    """One line and no byte behind it, since the rest of standard input is the shard's; None: it has ended."""
    line = bytearray()
    while byte := os.read(STDIN, 1):
        if byte == b"\n":
            return bytes(line)
        line += byte
    return None


def _set_name(name: bytes) -> None:
    with suppress(OSError):
        Path("/proc/self/comm").write_bytes(name)
