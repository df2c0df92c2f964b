"""Batches of rows to sample, whose parameters are given by the names of their columns."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from pagewire_kernels.sample import SamplingBatch, SamplingColumns, Stage, TokenMasks
from pagewire_kernels.sample.columns import ALL_STAGES, BITS, FLOATS, MAX_BAD_WORDS, mask_words
from pagewire_kernels.sequence_state import SequenceState, StateColumns

NUM_TOKENS = 0
"""The column of SequenceState.ints that these batches have."""
NAN_BITS = 0x7FC00000
"""NaN as a value, and no token of any vocabulary."""


def sampling_batch(
    num_rows: int,
    vocab_size: int = 100,
    *,
    random_seed: int = 0,
    max_len: int = 30,
    stages: Stage = ALL_STAGES,
    logit_bias: dict[int, float] | Sequence[dict[int, float]] = (),
    stop_token_ids: torch.Tensor | None = None,
    masks_stop: Sequence[bool] = (),
    masks: Sequence[Iterable[int] | None] = (),
    allowed: Sequence[Iterable[int]] = (),
    bad_words: Sequence[Sequence[Sequence[int]]] = (),
    **options: Any,
) -> SamplingBatch:
    """Rows that draw from the model's distribution, but for the options; slots, tokens and seeds are random.

    Args:
        logit_bias: Of all rows, or of each.
        stop_token_ids: [num_rows, num_stops] int32.
        masks_stop: For each row, whether it is too short to stop.
        masks: For each row, the tokens of its mask; None: it has none.
        allowed: For each row, its allowed tokens; none: all.
        bad_words: For each row.
        options: Columns by their names, and num_tokens: a tensor, a list, or one value for all rows.
    """
    generator = torch.Generator().manual_seed(random_seed)

    def random(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    slots = torch.randperm(num_rows + 2, generator=generator)[:num_rows]
    columns = SamplingColumns.neutral(num_rows + 2, vocab_size)
    for table in (columns.allowed, columns.bad_words):
        table.fill_(NAN_BITS)
    columns.floats.fill_(float("nan"))
    columns.ints.fill_(-7)
    penalises = any("penalty" in name for name in options)
    values = {column.name: column.neutral for column in FLOATS}
    values |= {"temperature": 1.0, "top_k": 0, "seed": random(-(2**62), 2**62, num_rows)}
    values |= {"num_prompt_tokens": random(0, 10, num_rows)}
    if "num_tokens" not in options:
        values["num_tokens"] = random(10, max_len if penalises else 2**33, num_rows)
    values |= options
    ints = torch.full((num_rows + 2, 2), -7)
    for name, value in values.items():
        column = ints[:, NUM_TOKENS] if name == "num_tokens" else columns.column(name)
        column[slots] = torch.as_tensor(value).to(column.dtype).expand(num_rows)
    too_short = torch.tensor(list(masks_stop) or [False] * num_rows)
    columns.column("min_len")[slots] = torch.where(too_short, ints[slots, NUM_TOKENS] + 1, 0)
    biases = [logit_bias] * num_rows if isinstance(logit_bias, dict) else list(logit_bias) or [{}] * num_rows
    fill_biases(columns, slots, biases)
    fill_allowed(columns, slots, vocab_size, allowed or [()] * num_rows)
    fill_bad_words(columns, slots, bad_words or [()] * num_rows)
    stops = torch.full((num_rows + 2, 3 if stop_token_ids is None else stop_token_ids.shape[1]), -1, dtype=torch.int32)
    if stop_token_ids is not None:
        stops[slots] = stop_token_ids
    sequences = SequenceState(
        ints=ints,
        token_ids=random(0, vocab_size, num_rows + 2, max_len).int(),
        block_tables=torch.empty(0, 0, dtype=torch.int32),
        stop_token_ids=stops,
        columns=StateColumns(num_tokens=NUM_TOKENS, num_computed=1, stop_reason=1, max_len=1),
    )
    return SamplingBatch(slots, sequences, columns, stages, token_masks(vocab_size, masks) if masks else None)


def token_masks(vocab_size: int, masks: Sequence[Iterable[int] | None]) -> TokenMasks:
    """The masks of rows, in an order of their own and with one that no row has."""
    rows = [row for row, mask in enumerate(masks) if mask is not None]
    bits = torch.full((len(rows) + 1, mask_words(vocab_size)), NAN_BITS, dtype=torch.int32)
    for place, row in enumerate(reversed(rows)):
        bits[place] = mask_bits(masks[row] or (), vocab_size)
    order = {row: place for place, row in enumerate(reversed(rows))}
    return TokenMasks(bits, torch.tensor([order.get(row, -1) for row in range(len(masks))]))


def mask_bits(token_ids: Iterable[int], vocab_size: int) -> torch.Tensor:
    """[num_words] int32: the mask of these tokens; bits beyond the vocabulary are set."""
    words = [0] * mask_words(vocab_size)
    for token_id in (*token_ids, *range(vocab_size, len(words) * BITS)):
        words[token_id // BITS] |= 1 << token_id % BITS
    return torch.tensor(words, dtype=torch.int64).to(torch.int32)


def fill_biases(columns: SamplingColumns, slots: torch.Tensor, biases: Sequence[dict[int, float]]) -> None:
    """Writes the biases of each slot; what is beyond them would be noticed."""
    columns.lists.fill_(NAN_BITS)
    columns.column("logit_bias")[slots] = torch.tensor([len(row) for row in biases])
    for slot, row in zip(slots.tolist(), biases, strict=True):
        token_ids, values = columns.entries("logit_bias", slot)
        token_ids.copy_(torch.tensor(list(row), dtype=torch.int32))
        values.copy_(torch.tensor(list(row.values()), dtype=torch.float32))


def fill_allowed(
    columns: SamplingColumns, slots: torch.Tensor, vocab_size: int, allowed: Sequence[Iterable[int]]
) -> None:
    """Writes the allowed tokens of each slot."""
    for slot, tokens in zip(slots.tolist(), map(set, allowed), strict=True):
        columns.column("allowed_token_ids")[slot] = len(tokens)
        if tokens:
            columns.allowed[slot] = mask_bits(tokens, vocab_size)


def fill_bad_words(columns: SamplingColumns, slots: torch.Tensor, bad_words: Sequence[Sequence[Sequence[int]]]) -> None:
    """Writes the bad words of each slot."""
    for slot, words in zip(slots.tolist(), bad_words, strict=True):
        columns.column("bad_words")[slot] = len(words)
        tokens = [token for word in words for token in word]
        columns.bad_words[slot, : len(words)] = torch.tensor(list(accumulate(map(len, words))), dtype=torch.int32)
        columns.bad_words[slot, MAX_BAD_WORDS : MAX_BAD_WORDS + len(tokens)] = torch.tensor(tokens, dtype=torch.int32)


def on(device: torch.device, batch: SamplingBatch) -> SamplingBatch:
    """The batch on a device."""
    sequences, columns = batch.sequences, batch.columns
    tables = {name: getattr(sequences, name).to(device) for name in ("ints", "token_ids", "stop_token_ids")}
    names = ("floats", "ints", "lists", "allowed", "bad_words")
    masks = batch.masks and TokenMasks(batch.masks.bits.to(device), batch.masks.rows.to(device))
    return replace(
        batch,
        slots=batch.slots.to(device),
        sequences=replace(sequences, **tables),
        masks=masks,
        columns=SamplingColumns(**{name: getattr(columns, name).to(device) for name in names}),
    )
