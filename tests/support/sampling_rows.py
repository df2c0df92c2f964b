"""Batches of rows to sample, whose parameters are given by the names of their columns."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pagewire_kernels.sample import SamplingBatch, SamplingColumns, Stage
from pagewire_kernels.sample.columns import ALL_STAGES, FLOATS
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
    **options: Any,
) -> SamplingBatch:
    """Rows that draw from the model's distribution, but for the options; slots, tokens and seeds are random.

    Args:
        logit_bias: Of all rows, or of each.
        stop_token_ids: [num_rows, num_stops] int32.
        masks_stop: For each row, whether it is too short to stop.
        options: Columns by their names, and num_tokens: a tensor, a list, or one value for all rows.
    """
    generator = torch.Generator().manual_seed(random_seed)

    def random(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    slots = torch.randperm(num_rows + 2, generator=generator)[:num_rows]
    columns = SamplingColumns.neutral(num_rows + 2)
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
    masks = torch.tensor(list(masks_stop) or [False] * num_rows)
    columns.column("min_len")[slots] = torch.where(masks, ints[slots, NUM_TOKENS] + 1, 0)
    biases = [logit_bias] * num_rows if isinstance(logit_bias, dict) else list(logit_bias) or [{}] * num_rows
    fill_biases(columns, slots, biases)
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
    return SamplingBatch(slots, sequences, columns, stages)


def fill_biases(columns: SamplingColumns, slots: torch.Tensor, biases: Sequence[dict[int, float]]) -> None:
    """Writes the biases of each slot; what is beyond them would be noticed."""
    columns.lists.fill_(NAN_BITS)
    columns.column("logit_bias")[slots] = torch.tensor([len(row) for row in biases])
    for slot, row in zip(slots.tolist(), biases, strict=True):
        token_ids, values = columns.entries("logit_bias", slot)
        token_ids.copy_(torch.tensor(list(row), dtype=torch.int32))
        values.copy_(torch.tensor(list(row.values()), dtype=torch.float32))


def on(device: torch.device, batch: SamplingBatch) -> SamplingBatch:
    """The batch on a device."""
    sequences, columns = batch.sequences, batch.columns
    tables = {name: getattr(sequences, name).to(device) for name in ("ints", "token_ids", "stop_token_ids")}
    names = ("floats", "ints", "lists")
    return replace(
        batch,
        slots=batch.slots.to(device),
        sequences=replace(sequences, **tables),
        columns=SamplingColumns(**{name: getattr(columns, name).to(device) for name in names}),
    )
