"""One ahead-of-time case: a specialisation of a Triton kernel, as a launch would make it.

The modules of cases/ list the specialisations that matter of each op's kernels in AOT_CASES. compiling.py compiles them
for every GPU generation without a GPU. They read launch constants of the kernels' modules, private ones included.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TARGETS = (80, 90, 100)
"""Compute capabilities that kernels are compiled for, times ten: A100, H100 and H200, B200."""


@dataclass(frozen=True, slots=True)
class AotCase:
    """One specialisation of a kernel.

    Every argument of the kernel is in signature or in constexprs, none in both. Pointers count as aligned to 16 bytes,
    as those of torch's allocations are.
    """

    name: str
    """Name of the specialisation, unique within its module, such as "head128-bf16"."""
    kernel: Any
    """The function that @triton.jit or @gluon.jit made."""
    signature: Mapping[str, str]
    """Argument -> type as Triton spells it: "*bf16" (a pointer), "i32", "i64", "fp32", "tensordesc<...>"."""
    constexprs: Mapping[str, object]
    """Argument -> value. An integer that is 1 in practice is a constexpr too: a launch specialises on it. Without PDL
    (dependent_launch.py), which the target decides."""
    num_warps: int = 4
    num_stages: int = 3
    divisible: tuple[str, ...] = ()
    """Integer arguments that are multiples of 16 in practice, such as strides: a launch specialises on that too."""
    targets: tuple[int, ...] = TARGETS
    """The generations that the launch code would choose this specialisation on."""
    may_spill: bool = False
    """Whether registers may spill to memory; table.json holds how many."""
