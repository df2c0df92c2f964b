"""The integer kernels around a forward pass beside their definitions: what they yield and what they change is exact."""

from collections.abc import Iterator
from dataclasses import fields, replace

import torch
from pagewire_kernels.append_tokens import append_tokens
from pagewire_kernels.append_tokens import reference as append_reference
from pagewire_kernels.prepare_inputs import prepare_inputs
from pagewire_kernels.prepare_inputs import reference as prepare_reference
from pagewire_kernels.sequence_state import SequenceState, StateColumns

from gpu_parts.part import Bench

COLUMNS = StateColumns(num_tokens=0, num_computed=1, stop_reason=2, max_len=4)
NUM_SLOTS, MAX_LEN, BLOCK_SIZE, VOCAB_SIZE = 70, 300, 16, 50


def step_kernels(bench: Bench) -> Iterator[tuple[str, float]]:
    """Decodes, prefills and mixtures, some of whose rows have stopped; 0: equal, 1: not."""
    for name, num_rows, longest in (("decodes", 64, 1), ("one row", 1, 1), ("mixture", 33, 40)):
        state = _state(bench.device)
        slots = torch.randperm(NUM_SLOTS, device=bench.device)[:num_rows]
        query_lens = torch.randint(1, longest + 1, (num_rows,), device=bench.device)
        lens = None if longest == 1 else query_lens
        # Rows of one token each are never padded by tokens: a graph pads them by rows.
        num_tokens = num_rows if lens is None else int(query_lens.sum()) + 5
        max_blocks = -(-MAX_LEN // BLOCK_SIZE)
        inputs = prepare_inputs(state, slots, lens, block_size=BLOCK_SIZE, num_tokens=num_tokens, max_blocks=max_blocks)
        expected = prepare_reference.prepare_inputs(state, slots, lens, BLOCK_SIZE, num_tokens, max_blocks)
        yield f"prepare_inputs, {name}", _differ(inputs, expected)

        sampled = torch.randint(0, VOCAB_SIZE, (num_rows,), device=bench.device)
        sample_rows = torch.randperm(num_rows, device=bench.device).to(torch.int32)
        sample_rows[::3] = -1
        for rows in (None, sample_rows):
            ours, theirs = (
                replace(state, ints=state.ints.clone(), token_ids=state.token_ids.clone()) for _ in range(2)
            )
            report = append_tokens(ours, slots, lens, sampled, rows, token_reason=1, length_reason=2, error_reason=3)
            expected_report = append_reference.append_tokens(theirs, slots, lens, sampled, rows, 1, 2, 3)
            wrong = max(_differ(ours, theirs), float(not torch.equal(report, expected_report)))
            yield f"append_tokens, {name}" + (", some rows sample" if rows is not None else ""), wrong


def _state(device: torch.device) -> SequenceState:
    """Sequences of random lengths; every seventh has stopped, some are one token short of their limit."""
    ints = torch.zeros(NUM_SLOTS, 8, dtype=torch.int64, device=device)
    ints[:, COLUMNS.num_computed] = torch.randint(0, MAX_LEN - 60, (NUM_SLOTS,), device=device)
    ints[:, COLUMNS.num_tokens] = ints[:, COLUMNS.num_computed] + 1
    ints[::7, COLUMNS.stop_reason] = 1
    ints[:, COLUMNS.max_len] = MAX_LEN - 10
    ints[::5, COLUMNS.max_len] = ints[::5, COLUMNS.num_tokens] + 1
    stop_token_ids = torch.full((NUM_SLOTS, 64), -1, dtype=torch.int32, device=device)
    stop_token_ids[:, :10] = torch.randint(0, VOCAB_SIZE, (NUM_SLOTS, 10), dtype=torch.int32, device=device)
    return SequenceState(
        ints=ints,
        token_ids=torch.randint(0, VOCAB_SIZE, (NUM_SLOTS, MAX_LEN), dtype=torch.int32, device=device),
        block_tables=torch.randint(0, 999, (NUM_SLOTS, -(-MAX_LEN // BLOCK_SIZE)), dtype=torch.int32, device=device),
        stop_token_ids=stop_token_ids,
        columns=COLUMNS,
    )


def _differ(left: object, right: object) -> float:
    """1 if any tensor of two dataclasses differs. Entries of block tables beyond a sequence's length may."""
    names = [field.name for field in fields(left) if field.name not in ("block_tables", "columns")]  # type: ignore[arg-type]
    return float(any(not torch.equal(getattr(left, name), getattr(right, name)) for name in names))
