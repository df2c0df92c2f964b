"""Which steps are captured. A step takes the smallest graph that holds it; what it does not fill is void."""

from collections.abc import Iterator
from dataclasses import dataclass

_SMALL_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256)
"""Sequences of small decode steps, which are many. A step of more than 16 fills two thirds of its graph at least."""
_SMALL_TOKENS = (8, 16, 32, 48, 64, 128, 192, 256)
"""Tokens of small mixed steps."""
_LEAST_SHARED_ROWS = 4
"""Fewer sequences save little when they read a common prefix once."""
_LEAST_STEP = 64
"""Matrix products of many rows pad them to tiles of 64 or 128."""
_FEW_ROWS = (64, 256)
"""Rows of the graphs that serve steps of many tokens and few sequences. Attention's launches cover all rows of a graph,
and in each layer those that a step does not fill take some ten microseconds for every 300."""
_FEW_ROWS_UP_TO = 2048
"""Tokens above which a step takes so long that they are not worth a graph, unless it is as large as steps may be: those
are most of the large ones."""


@dataclass(frozen=True, slots=True)
class GraphSizes:
    """Sizes of the graphs of one engine."""

    rows: tuple[int, ...]
    """Sequences of decode steps, and of samplings; ascending."""
    mixed: tuple[tuple[int, int], ...]
    """(tokens, sequences) of forward passes of any mixture of prompts and decodes; ascending."""

    @property
    def shared(self) -> tuple[int, ...]:
        """Sequences of the decode steps that are also captured for prefixes that the sequences share; ascending. Every
        second size is, which saves memory: such steps are fewer."""
        return tuple(num_rows for num_rows in self.rows[::-2] if num_rows >= _LEAST_SHARED_ROWS)[::-1]

    @property
    def largest(self) -> "GraphSizes":
        """The largest of each kind alone."""
        return GraphSizes(self.rows[-1:], self.mixed[-1:])

    @property
    def num_forwards(self) -> int:
        """Forward passes to capture."""
        return len(self.rows) + len(self.shared) + len(self.mixed)


def graph_sizes(max_num_seqs: int, max_num_batched_tokens: int) -> GraphSizes:
    """The sizes that hold every step of an engine with these limits."""
    max_rows = min(max_num_seqs, max_num_batched_tokens)
    mixed = [
        (num_tokens, num_rows)
        for num_tokens in _ladder(_SMALL_TOKENS, max_num_batched_tokens)
        for num_rows in _row_capacities(num_tokens, max_rows, max_num_batched_tokens)
    ]
    return GraphSizes(tuple(_ladder(_SMALL_ROWS, max_rows)), tuple(mixed))


def _ladder(small: tuple[int, ...], largest: int) -> Iterator[int]:
    """Sizes up to `largest`: the small ones, then some that are at most a quarter apart, from 512 on an eighth."""
    yield from (size for size in small if size < largest)
    size = small[-1]
    while (size := size + max(_LEAST_STEP, (1 << size.bit_length() - 1) // 8)) < largest:
        yield size
    yield largest


def _row_capacities(num_tokens: int, max_rows: int, max_num_batched_tokens: int) -> Iterator[int]:
    most = min(num_tokens, max_rows)
    if num_tokens <= _FEW_ROWS_UP_TO or num_tokens == max_num_batched_tokens:
        yield from (few for few in _FEW_ROWS if 2 * few <= most)
    yield most
