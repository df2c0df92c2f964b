"""How the sequences of all slots are sampled: one table of numbers, whose columns are named here and nowhere else.

A column that has the name of a parameter holds that parameter. What fills a row, and what reads one, finds the column
by its name. A kernel treats a row by what its columns hold, whatever else is in the batch; `Stage` only says which
stages no row of a batch needs, so that these cost nothing.
"""

from dataclasses import dataclass
from enum import IntFlag

import torch

GREEDY_BELOW = 1e-5
"""Temperatures below this mean the most probable token."""
MAX_BIASES = 1024
"""Tokens of one sequence that may have a bias: a slot's two rows of them take 8 KiB."""


class Stage(IntFlag):
    """The stages of sampling, in their order."""

    BIAS = 1
    """Adds the biases."""
    STOP_MASK = 2
    """Takes the stop tokens of sequences that are too short to stop."""
    PENALTIES = 4
    """Repetition, frequency and presence penalty."""
    DRAW = 8
    """Temperature, filters and a draw. Without it the most probable token is taken."""


NO_STAGE = Stage(0)
ALL_STAGES = Stage.BIAS | Stage.STOP_MASK | Stage.PENALTIES | Stage.DRAW


@dataclass(frozen=True, slots=True)
class Column:
    """One number of each slot."""

    name: str
    neutral: float
    """The value that changes nothing."""
    stage: Stage = NO_STAGE
    """What another value makes necessary."""


FLOATS = (
    Column("temperature", 0.0, Stage.DRAW),
    Column("top_p", 1.0),
    Column("min_p", 0.0),
    Column("presence_penalty", 0.0, Stage.PENALTIES),
    Column("frequency_penalty", 0.0, Stage.PENALTIES),
    Column("repetition_penalty", 1.0, Stage.PENALTIES),
)
"""Columns of SamplingColumns.floats. The filters come with the draw, which the temperature asks for."""
INTS = (
    Column("top_k", 0),  # 0 or less: off.
    Column("seed", 0),  # The bits of an unsigned seed.
    Column("num_prompt_tokens", 0),
    Column("min_len", 0, Stage.STOP_MASK),  # A sequence with fewer tokens than this does not sample a stop token.
    Column("num_biases", 0, Stage.BIAS),
)
"""Columns of SamplingColumns.ints."""


def float_column(name: str) -> int:
    """The index of a column of FLOATS."""
    return [column.name for column in FLOATS].index(name)


def int_column(name: str) -> int:
    """The index of a column of INTS."""
    return [column.name for column in INTS].index(name)


@dataclass(frozen=True, slots=True)
class SamplingColumns:
    """One row for each slot, contiguous. The tables of biases are read as far as a row's num_biases says, so on a CPU
    their pages take no memory until they are used."""

    floats: torch.Tensor
    """[num_slots, len(FLOATS)] float32."""
    ints: torch.Tensor
    """[num_slots, len(INTS)] int64."""
    bias_token_ids: torch.Tensor
    """[num_slots, MAX_BIASES] int32: tokens of the vocabulary, each once; beyond num_biases arbitrary."""
    biases: torch.Tensor
    """[num_slots, MAX_BIASES] float32: finite; beyond num_biases arbitrary."""

    @staticmethod
    def neutral(num_slots: int, device: torch.device | str = "cpu") -> "SamplingColumns":
        """Rows that take the most probable token and change nothing."""
        floats = torch.tensor([column.neutral for column in FLOATS], dtype=torch.float32, device=device)
        ints = torch.tensor([int(column.neutral) for column in INTS], dtype=torch.int64, device=device)
        return SamplingColumns(
            floats=floats.repeat(num_slots, 1),
            ints=ints.repeat(num_slots, 1),
            bias_token_ids=torch.empty(num_slots, MAX_BIASES, dtype=torch.int32, device=device),
            biases=torch.empty(num_slots, MAX_BIASES, dtype=torch.float32, device=device),
        )

    def column(self, name: str) -> torch.Tensor:
        """[num_slots]: a column of floats or ints."""
        if name in {column.name for column in FLOATS}:
            return self.floats[:, float_column(name)]
        return self.ints[:, int_column(name)]
