"""Finds operand descriptors of Hopper's tensor cores that ptxas computed from a register nobody wrote.

A descriptor has 64 bits: an address below, layout and strides above. Where ptxas moves the sum of an address and a
constant out of a loop, it adds the high word of the constant to a uniform register that should hold the high word of
the address, 0. Releases up to that of Triton 3.6 at times take another register instead, which they never set for it.
The tensor core then reads operands by a false layout, or from outside of shared memory, and the kernel computes
something else or dies. What surrounds a product decides whether that happens, so every kernel is looked through.
"""

import re

_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s+([^;]*);")
_HIGH_WORD = re.compile(r"UIADD3\.X UR\d+, UR(\d+), (-?0x[0-9a-f]+),")
_DESTINATION = re.compile(r"UR(\d+)\b")
_LEAST_LAYOUT = 1 << 29
"""Constants in high words are at least as large, positive or negative: their upper bits name the swizzling."""


def broken_descriptors(sass: str) -> list[str]:
    """The instructions that add a descriptor's high word to a register which was not set to zero before.

    Args:
        sass: nvdisasm's output for one kernel. Instructions are taken in the order of the code, since these sums stand
            outside of loops, behind the zero that they take.
    """
    written_by: dict[int, str] = {}
    broken = []
    for opcode, operands in _INSTRUCTION.findall(sass):
        instruction = f"{opcode} {operands.strip()}"
        sum_of = _HIGH_WORD.match(instruction)
        if sum_of and abs(int(sum_of[2], 16)) >= _LEAST_LAYOUT:
            register = int(sum_of[1])
            if written_by.get(register) != f"UMOV UR{register}, URZ":
                broken.append(instruction)
        destination = _DESTINATION.match(operands.strip())
        if destination:
            first = int(destination[1])
            width = 4 if ".128" in opcode else 2 if ".64" in opcode or "WIDE" in opcode else 1
            written_by |= dict.fromkeys(range(first, first + width), instruction)
    return broken
