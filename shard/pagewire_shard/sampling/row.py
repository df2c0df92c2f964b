"""What a sequence's slot holds in the sampling columns: its parameters, read once from the message that admits it."""

from dataclasses import dataclass

from pagewire_kernels.sample.columns import FLOATS, INTS, LISTS

from pagewire_shard.engine.sequence import Sequence


@dataclass(frozen=True, slots=True, eq=False)
class SamplingRow:
    """One row of SamplingColumns."""

    floats: list[float]
    ints: list[int]
    lists: list[dict[int, float]]
    """For each of LISTS, its tokens and their values."""
    stages: int
    """The Stages that it needs, as an integer."""


def sampling_row(sequence: Sequence) -> SamplingRow:
    """The row of a sequence. A column that has the name of a parameter takes its value, a list its entries."""
    params, stop = sequence.sampling_params, sequence.stop
    own = {
        "seed": sequence.seed,
        "num_prompt_tokens": sequence.num_prompt_tokens,
        "min_len": sequence.num_prompt_tokens + stop.min_tokens if stop.min_tokens else 0,
    }
    lists = [dict(getattr(params, column.name)) for column in LISTS]
    own |= {column.name: len(entries) for column, entries in zip(LISTS, lists, strict=True)}
    floats = [getattr(params, column.name) for column in FLOATS]
    ints = [own[column.name] if column.name in own else getattr(params, column.name) for column in INTS]
    stages = 0
    for column, value in zip((*FLOATS, *INTS), (*floats, *ints), strict=True):
        if value != column.neutral:
            stages |= column.stage.value
    return SamplingRow(floats, ints, lists, stages)
