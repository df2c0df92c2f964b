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
"""Tokens of one sequence that may have a bias."""
MAX_BAD_WORDS = 128
"""Bad words of one sequence."""
MAX_BAD_WORD_TOKENS = 1024
"""Tokens of all bad words of one sequence together."""
BITS = 32
"""Tokens whose bits are in one word of a mask."""


class Stage(IntFlag):
    """The stages of sampling, in their order."""

    MASK = 1
    """Takes the tokens that a mask of the batch does not allow."""
    ALLOWED_TOKENS = 2
    """Takes the tokens that are not among the allowed ones of the slot."""
    BAD_WORDS = 4
    """Takes the last tokens of bad words that the output ends with all but the last token of."""
    BIAS = 8
    """Adds the biases."""
    STOP_MASK = 16
    """Takes the stop tokens of sequences that are too short to stop."""
    PENALTIES = 32
    """Repetition, frequency and presence penalty."""
    DRAW = 64
    """Temperature, filters and a draw. Without it the most probable token is taken."""


NO_STAGE = Stage(0)
RARE_STAGES = Stage.MASK | Stage.ALLOWED_TOKENS | Stage.BAD_WORDS | Stage.BIAS
"""Stages that GPU kernels are compiled with, all of them or none, and that captured graphs leave out."""
ALL_STAGES = RARE_STAGES | Stage.STOP_MASK | Stage.PENALTIES | Stage.DRAW


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
    Column("logit_bias", 0, Stage.BIAS),  # How many entries the list of that name has.
    Column("allowed_token_ids", 0, Stage.ALLOWED_TOKENS),  # How many tokens are allowed; 0: all.
    Column("bad_words", 0, Stage.BAD_WORDS),  # How many there are.
)
"""Columns of SamplingColumns.ints."""


@dataclass(frozen=True, slots=True)
class ListColumn:
    """A list of tokens, each with a value, of each slot; an integer column of its name says how many entries it has."""

    name: str
    max_entries: int


LISTS = (ListColumn("logit_bias", MAX_BIASES),)
"""Columns of SamplingColumns.lists: in a row, a list's token ids come first, then as many values."""
LIST_WIDTH = sum(2 * column.max_entries for column in LISTS)
BAD_WORDS_WIDTH = MAX_BAD_WORDS + MAX_BAD_WORD_TOKENS
"""Columns of SamplingColumns.bad_words: in a row, where each bad word ends, then the tokens of all of them."""


def mask_words(vocab_size: int) -> int:
    """The words of a mask over the vocabulary, as llguidance lays it out: bit i of word w is token 32 * w + i."""
    return -(-vocab_size // BITS)


def float_column(name: str) -> int:
    """The index of a column of FLOATS."""
    return [column.name for column in FLOATS].index(name)


def int_column(name: str) -> int:
    """The index of a column of INTS."""
    return [column.name for column in INTS].index(name)


def list_column(name: str) -> int:
    """Where in a row of lists the token ids of a column of LISTS begin."""
    place = [column.name for column in LISTS].index(name)
    return sum(2 * column.max_entries for column in LISTS[:place])


@dataclass(frozen=True, slots=True)
class SamplingColumns:
    """One row for each slot, contiguous."""

    floats: torch.Tensor
    """[num_slots, len(FLOATS)] float32."""
    ints: torch.Tensor
    """[num_slots, len(INTS)] int64."""
    lists: torch.Tensor
    """[num_slots, LIST_WIDTH] int32: tokens of the vocabulary, each once, and the bits of float32 values; beyond a
    list's entries arbitrary. A row is 8 KiB, which a CPU gives memory only when it is written."""
    allowed: torch.Tensor
    """[num_slots, mask_words(vocab_size)] int32: the mask of the allowed tokens; arbitrary where all are. A row is 16
    KiB for 128,256 tokens, as above."""
    bad_words: torch.Tensor
    """[num_slots, BAD_WORDS_WIDTH] int32: place i holds how many tokens the first i + 1 bad words have, and from
    place MAX_BAD_WORDS on come their tokens; beyond those arbitrary."""

    @staticmethod
    def neutral(num_slots: int, vocab_size: int, device: torch.device | str = "cpu") -> "SamplingColumns":
        """Rows that take the most probable token and change nothing."""
        floats = torch.tensor([column.neutral for column in FLOATS], dtype=torch.float32, device=device)
        ints = torch.tensor([int(column.neutral) for column in INTS], dtype=torch.int64, device=device)
        return SamplingColumns(
            floats=floats.repeat(num_slots, 1),
            ints=ints.repeat(num_slots, 1),
            lists=torch.empty(num_slots, LIST_WIDTH, dtype=torch.int32, device=device),
            allowed=torch.empty(num_slots, mask_words(vocab_size), dtype=torch.int32, device=device),
            bad_words=torch.empty(num_slots, BAD_WORDS_WIDTH, dtype=torch.int32, device=device),
        )

    def column(self, name: str) -> torch.Tensor:
        """[num_slots]: a column of floats or ints."""
        if name in {column.name for column in FLOATS}:
            return self.floats[:, float_column(name)]
        return self.ints[:, int_column(name)]

    def entries(self, name: str, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The token ids, [num_entries] int32, and their values, float32, of a slot's list."""
        num, first = int(self.ints[slot, int_column(name)]), list_column(name)
        size = next(column.max_entries for column in LISTS if column.name == name)
        token_ids, values = (self.lists[slot, start : start + num] for start in (first, first + size))
        return token_ids, values.view(torch.float32)

    def bad_words_of(self, slot: int) -> list[list[int]]:
        """The bad words of a slot, each as its tokens."""
        ends = self.bad_words[slot, : int(self.ints[slot, int_column("bad_words")])].tolist()
        tokens = self.bad_words[slot, MAX_BAD_WORDS:].tolist()
        return [tokens[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
