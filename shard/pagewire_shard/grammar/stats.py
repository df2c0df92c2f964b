"""Counters of grammars, for metrics."""

from collections import Counter
from dataclasses import dataclass, field

from pagewire_common.histogram import Histogram, bounds_between

OUTCOMES = ("compiled", "cached", "refused", "too_costly", "failed")
"""Of a Prepare: a new grammar; one that was there already; not supported; over a limit; the compiler was killed."""


@dataclass(slots=True)
class GrammarStats:
    """Each field by itself is consistent."""

    num_prepared: Counter[str] = field(default_factory=Counter)
    """Prepares that were answered, by OUTCOMES."""
    num_process_starts: int = 0
    """Times that the process that compiles was started."""
    num_waiting: int = 0
    """Grammars that are being compiled, or wait for it."""
    num_cached: int = 0
    """Compiled grammars that are kept."""
    num_cached_bytes: int = 0
    """Memory of those."""
    prepare_s: Histogram = field(
        default_factory=lambda: Histogram(
            "pagewire_shard_grammar_prepare_seconds", "From a Prepare to its answer.", bounds_between(-4, 1)
        )
    )
