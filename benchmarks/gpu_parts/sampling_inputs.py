"""Batches of rows that are sampled by the same parameters."""

import torch
from pagewire_kernels.sample import SamplingBatch, SamplingColumns, Stage
from pagewire_kernels.sequence_state import SequenceState, StateColumns

MAX_LEN = 64
NUM_PROMPT = 20
NUM_TOKENS = 50
_COLUMNS = StateColumns(num_tokens=0, num_computed=1, stop_reason=2, max_len=3)


def sampling_batch(
    device: torch.device, num_rows: int, vocab_size: int, stages: Stage, **options: float
) -> SamplingBatch:
    """Rows with different seeds and token histories, temperature 1, and the options: columns by their names."""
    rows = torch.arange(num_rows, device=device)
    columns = SamplingColumns.neutral(num_rows, vocab_size, device)
    columns.column("seed")[:] = rows * 7919 + 12345
    for name, value in {"temperature": 1.0, "num_prompt_tokens": NUM_PROMPT, **options}.items():
        columns.column(name)[:] = value
    sequences = SequenceState(
        ints=torch.full((num_rows, 4), NUM_TOKENS, device=device),
        token_ids=torch.randint(0, vocab_size, (num_rows, MAX_LEN), dtype=torch.int32, device=device),
        block_tables=torch.zeros((num_rows, 1), dtype=torch.int32, device=device),
        stop_token_ids=torch.full((num_rows, 1), -1, dtype=torch.int32, device=device),
        columns=_COLUMNS,
    )
    return SamplingBatch(rows, sequences, columns, stages)
