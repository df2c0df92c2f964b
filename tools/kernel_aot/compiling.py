"""Compiles the Triton kernels for every GPU generation without a GPU, and reads the resources of each compiled kernel.

tools/kernel_table.py keeps the figures in table.json, which a test compares, so that a change which costs registers or
shared memory shows before it runs on a GPU.
"""

import importlib
import os
import pkgutil
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from typing import Any

from pagewire_kernels.gpu.dependent_launch import LEAST_GENERATION

from kernel_aot import cases as case_modules
from kernel_aot.case import AotCase
from kernel_aot.descriptors import broken_descriptors

SHARED_MEMORY_LIMIT_BYTES = {80: 166_912, 90: 232_448, 100: 232_448}
"""Most shared memory of a program: 163 KiB on an A100, 227 KiB on later generations."""
WARP_SIZE = 32
# The opcode of each line of SASS, behind its address and its predicate.
_OPCODE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)")
_WAIT = "ACQBULK"
"""The instruction that waits for the previous kernel."""
_MEMORY_ACCESSES = {"LD", "LDG", "LDGSTS", "ST", "STG", "ATOM", "ATOMG", "RED", "REDG"}

Job = tuple[str, int]
"""(a case's key, a target)."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Resources of one compiled kernel. Instructions are counted in the code, not in a run."""

    registers: int
    """Registers of each thread."""
    spills: int
    """Loads and stores of local memory: registers that did not fit, or arrays indexed at run time."""
    shared_bytes: int
    """Shared memory of a program."""
    tensor_core: int
    """Tensor core instructions: HGMMA is Hopper's, asynchronous and from shared memory; HMMA any other's."""
    wgmma: int
    """Hopper's HGMMA instructions, which tensor_core counts too."""
    async_copies: int
    """Copies from global to shared memory that bypass registers."""
    tma: int
    """Bulk tensor copies."""
    before_wait: int = 0
    """Accesses to global memory that a kernel with PDL (dependent_launch.py) makes before it waits."""
    broken_descriptors: int = 0
    """Operand descriptors of tensor cores that the compiler got wrong, see descriptors.py."""


def collect() -> dict[str, AotCase]:
    """All cases by "<op>/<case>", or "<op>/<part>/<case>" for ops that have kernels in several modules.

    Kernels in Gluon are left out if the installed Triton does not have Gluon as they need it.
    """
    cases: dict[str, AotCase] = {}
    for found in sorted(pkgutil.iter_modules(case_modules.__path__), key=lambda module: module.name):
        try:
            module = importlib.import_module(f"{case_modules.__name__}.{found.name}")
        except (ImportError, AttributeError):
            if "hopper" not in found.name:
                raise
            continue
        for case in module.AOT_CASES:
            key = f"{module.PREFIX}/{case.name}"
            assert key not in cases, f"two cases are named {key}"
            cases[key] = case
    return cases


def jobs(cases: Mapping[str, AotCase]) -> list[Job]:
    """Every case for each of its targets."""
    return [(key, target) for key, case in cases.items() for target in case.targets]


def sample(cases: Mapping[str, AotCase], target: int) -> list[Job]:
    """The first case of each kernel that the target has: one compilation of every kernel there is."""
    first: dict[str, Job] = {}
    for key, case in cases.items():
        if target in case.targets:
            function = case.kernel.fn
            first.setdefault(f"{function.__module__}.{function.__name__}", (key, target))
    return list(first.values())


def measure(wanted: Iterable[Job], num_processes: int | None = None) -> tuple[dict[Job, Resources], dict[Job, str]]:
    """Compiles jobs side by side. Triton's cache makes a second run short.

    Args:
        num_processes: processes to compile in; None: one for each core.

    Returns:
        The resources of each job, and the error of each job that does not compile.
    """
    wanted = list(wanted)
    # Processes are spawned, not forked, because torch's threads do not survive a fork.
    with ProcessPoolExecutor(num_processes or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        outcomes = dict(zip(wanted, pool.map(_measure_job, wanted, chunksize=1), strict=True))
    found = {job: outcome for job, outcome in outcomes.items() if isinstance(outcome, Resources)}
    return found, {job: outcome for job, outcome in outcomes.items() if isinstance(outcome, str)}


def _measure_job(job: Job) -> Resources | str:
    key, target = job
    try:
        return compile_case(_all_cases()[key], target)
    except Exception as error:  # The compiler raises many kinds; the other jobs go on.
        # The last exception of the chain is about the innermost function.
        while error.__cause__ is not None and isinstance(error.__cause__, Exception):
            error = error.__cause__
        return f"{type(error).__name__}: {error}"


@cache
def _all_cases() -> dict[str, AotCase]:
    return collect()


def compile_case(case: AotCase, target: int) -> Resources:
    """Compiles one case for one target.

    Raises:
        ValueError: an argument of the kernel is missing from the case, or is there twice.
        triton.CompilationError: the kernel does not compile.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    names: list[str] = case.kernel.arg_names
    constexprs = dict(case.constexprs)
    if "PDL" in names:
        constexprs["PDL"] = target >= LEAST_GENERATION
    described = [*case.signature, *constexprs]
    if sorted(described) != sorted(names):
        raise ValueError(f"case {case.name} describes {sorted(described)}; the kernel takes {sorted(names)}")
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    aligned = [name for name, kind in case.signature.items() if kind.startswith("*") or name in case.divisible]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = _source_class(case.kernel)(case.kernel, signature, constexprs, attributes)
    # Launches use fused multiply-adds in every version so far; later versions need the option.
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", target, WARP_SIZE), options=options)
    return _resources(compiled.asm["cubin"], compiled.metadata.shared)


def _source_class(kernel: Any) -> Any:
    """Returns the source class of triton.compile for a kernel's language."""
    if kernel.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource

        return GluonASTSource
    from triton.compiler import ASTSource

    return ASTSource


def _resources(cubin: bytes, shared_bytes: int) -> Resources:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        cuobjdump = knobs.nvidia.cuobjdump.path
        usage = _output([cuobjdump, "--dump-resource-usage", file.name])
        sass = _output([knobs.nvidia.nvdisasm.path, "--print-code", file.name])
    code = _OPCODE.findall(sass)
    opcodes = Counter(code)
    registers = re.search(r"REG:(\d+)", usage)
    assert registers is not None, usage
    return Resources(
        registers=int(registers[1]),
        spills=opcodes["LDL"] + opcodes["STL"],
        shared_bytes=shared_bytes,
        tensor_core=sum(count for name, count in opcodes.items() if name.endswith("MMA")),
        wgmma=opcodes["HGMMA"],
        async_copies=opcodes["LDGSTS"],
        tma=opcodes["UTMALDG"],
        before_wait=sum(name in _MEMORY_ACCESSES for name in code[: code.index(_WAIT)]) if _WAIT in opcodes else 0,
        broken_descriptors=len(broken_descriptors(sass)),
    )


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def as_row(resources: Resources) -> dict[str, int]:
    """Returns the fields for the table, without those that are zero."""
    return {name: value for name, value in asdict(resources).items() if value}


def from_row(row: Mapping[str, int]) -> Resources:
    """The inverse of as_row."""
    return Resources(**{name: row.get(name, 0) for name in Resources.__slots__})
