"""What compiling and following a grammar may cost."""

from dataclasses import dataclass

from llguidance import LLParserLimits

MAX_SOURCE_BYTES = 2 << 20
"""Longest source of a grammar."""


@dataclass(frozen=True, slots=True)
class GrammarLimits:
    """Limits of one grammar, and of those that are kept."""

    compile_timeout_s: float = 2.0
    """Longest time for compiling a grammar and computing its first mask."""
    compile_memory_bytes: int = 512 << 20
    """Most memory for that."""
    cache_bytes: int = 512 << 20
    """Most memory of all compiled grammars: those in use, and those that are kept for later requests."""


def parser_limits() -> LLParserLimits:
    """Bounds of every later mask, some 10 ms at the very most, and of the states of a grammar's lexer: some 100 MB.

    They are counts: all ranks reach them at the same token. An optional property takes four items of a row where it
    may come next, so that objects may have some 240. A sequence whose grammar needs more ends with STOP_REASON_GRAMMAR.
    """
    return LLParserLimits(
        max_items_in_row=1_000,
        step_lexer_fuel=50_000,
        step_max_items=10_000,
        max_lexer_states=50_000,
        verbose_errors=False,
    )
