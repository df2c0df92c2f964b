"""Fails if a file or a function is longer than the limits.

Limits: 500 lines for a file (tests are exempt), 70 for a function from its `def` to its last line, 140 if it is a
Triton or numba kernel. Generated modules are exempt.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("client", "common", "router", "shard", "kernels", "tools", "benchmarks", "tests")
GENERATED = ROOT / "client" / "pagewire" / "v1"

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 70
MAX_KERNEL_LINES = 140
KERNEL_DECORATORS = {"jit", "njit"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def python_files(root: Path) -> Iterator[Path]:
    """Every hand-written Python file of the project, in a stable order."""
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            if not path.is_relative_to(GENERATED) and "__pycache__" not in path.parts:
                yield path


def is_kernel(function: Function) -> bool:
    """Returns whether a decorator such as @triton.jit or @njit(...) compiles it."""
    for decorator in function.decorator_list:
        target = decorator.func if isinstance(decorator, ast.Call) else decorator
        name = target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")
        if name in KERNEL_DECORATORS:
            return True
    return False


def function_excesses(source: str) -> Iterator[tuple[int, str, int, int]]:
    """Yields (line, name, number of lines, limit) of every function that is too long."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function):
            assert node.end_lineno is not None
            num_lines = node.end_lineno - node.lineno + 1
            limit = MAX_KERNEL_LINES if is_kernel(node) else MAX_FUNCTION_LINES
            if num_lines > limit:
                yield node.lineno, node.name, num_lines, limit


def violations(path: Path) -> Iterator[str]:
    """Yields one line for each limit that a file breaks."""
    source = path.read_text()
    num_lines = source.count("\n")
    name = path.relative_to(ROOT)
    if num_lines > MAX_FILE_LINES and name.parts[0] != "tests":
        yield f"{name}: {num_lines} lines, at most {MAX_FILE_LINES}"
    for line, function, length, limit in function_excesses(source):
        yield f"{name}:{line}: {function} has {length} lines, at most {limit}"


def main() -> int:
    """Prints every violation; the exit status says whether there was one."""
    found = [violation for path in python_files(ROOT) for violation in violations(path)]
    for violation in found:
        print(violation)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
