"""What a sequence's slot holds in the sampling columns: its parameters, read once from the message that admits it."""

from dataclasses import dataclass

from pagewire_kernels.sample.columns import FLOATS, INTS

from pagewire_shard.engine.sequence import Sequence


@dataclass(frozen=True, slots=True, eq=False)
class SamplingRow:
    """One row of SamplingColumns."""

    floats: list[float]
    ints: list[int]
    bias_token_ids: list[int]
    biases: list[float]
    stages: int
    """The Stages that it needs, as an integer."""


def sampling_row(sequence: Sequence) -> SamplingRow:
    """The row of a sequence. A column that has the name of a parameter takes its value."""
    params, stop = sequence.sampling_params, sequence.stop
    own = {
        "seed": sequence.seed,
        "num_prompt_tokens": sequence.num_prompt_tokens,
        "min_len": sequence.num_prompt_tokens + stop.min_tokens if stop.min_tokens else 0,
        "num_biases": len(params.logit_bias),
    }
    floats = [getattr(params, column.name) for column in FLOATS]
    ints = [own[column.name] if column.name in own else getattr(params, column.name) for column in INTS]
    stages = 0
    for column, value in zip((*FLOATS, *INTS), (*floats, *ints), strict=True):
        if value != column.neutral:
            stages |= column.stage.value
    return SamplingRow(floats, ints, list(params.logit_bias), list(params.logit_bias.values()), stages)
