"""A stage of a pipeline: some ranks of a group, which hold a range of the model's layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage among `count`, which a token goes through in their order."""

    index: int = 0
    count: int = 1

    @property
    def is_alone(self) -> bool:
        return self.count == 1

    @property
    def is_first(self) -> bool:
        """It embeds the tokens."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """It makes the logits, and samples."""
        return self.index == self.count - 1


WHOLE = Stage()


def stage_bounds(sizes: Sequence[int], first: int, last: int, cuts: Sequence[int], count: int) -> list[int] | None:
    """Shares layers out among stages, so that the one that holds most holds as little as possible.

    Args:
        sizes: What each layer holds.
        first, last: What the first and the last stage hold beside their layers.
        cuts: Layers that a stage may begin with, ascending; not the first layer.
        count: Stages, 2 at least.

    Returns:
        The first layer of each stage, and the number of layers; None: there are too few cuts.
    """
    sums = list(accumulate(sizes, initial=0))
    ends = [*cuts, len(sizes)]
    # For each end of a stage the least that one of the stages so far holds, and the bounds that lead there.
    best: dict[int, tuple[int, list[int]]] = {end: (first + sums[end], [0, end]) for end in ends}
    for stage in range(1, count):
        extra = last if stage == count - 1 else 0
        ways = {
            end: [
                (max(most, sums[end] - sums[start] + extra), [*bounds, end])
                for start, (most, bounds) in best.items()
                if start < end
            ]
            for end in ends
        }
        best = {end: min(those) for end, those in ways.items() if those}
    return best[len(sizes)][1] if len(sizes) in best else None
