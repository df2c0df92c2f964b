"""prepare_inputs on a CPU: the reference's loop, compiled. Made of torch's operators it would take far longer to
call than to compute."""

import numpy as np
import torch
from numba import njit

from pagewire_kernels.cpu.compile_cache import use_compile_cache
from pagewire_kernels.prepare_inputs.inputs import PreparedInputs, StepRows

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

use_compile_cache()


@njit(nogil=True, error_model="numpy", cache=True)
def _prepare(state, columns, slots, query_lens, block_size, by_token, starts, seq_lens, tables):
    """state: (ints, token_ids, block_tables); columns: (num_computed, stop_reason); by_token: the outputs that have an
    element for each token."""
    ints, token_ids, block_tables = state
    num_computed, stop_reason = columns
    input_ids, positions, slot_mapping = by_token
    input_ids[:], positions[:], slot_mapping[:] = 0, 0, -1
    starts[0] = 0
    for row in range(slots.size):
        slot, first, query_len = slots[row], starts[row], query_lens[row]
        starts[row + 1] = first + query_len
        for i in range(tables.shape[1]):
            tables[row, i] = block_tables[slot, i]
        seq_lens[row] = 0
        if ints[slot, stop_reason] != 0:
            continue
        begin = ints[slot, num_computed]
        seq_lens[row] = begin + query_len
        for i in range(query_len):
            position = begin + i
            input_ids[first + i] = token_ids[slot, position]
            positions[first + i] = position
            block = np.int64(block_tables[slot, position // block_size])
            slot_mapping[first + i] = block * block_size + position % block_size


def prepare_inputs(rows: StepRows) -> PreparedInputs:
    """See the package."""
    state, columns, num_rows = rows.state, rows.state.columns, len(rows.slots)
    query_lens = np.ones(num_rows, np.int64) if rows.query_lens is None else rows.query_lens.long().numpy()
    inputs = PreparedInputs(
        input_ids=torch.empty(rows.num_tokens, dtype=torch.int64),
        positions=torch.empty(rows.num_tokens, dtype=torch.int64),
        slot_mapping=torch.empty(rows.num_tokens, dtype=torch.int64),
        query_start_loc=torch.empty(num_rows + 1, dtype=torch.int32),
        seq_lens=torch.empty(num_rows, dtype=torch.int32),
        block_tables=torch.empty((num_rows, rows.max_blocks), dtype=torch.int32),
    )
    _prepare(
        (state.ints.numpy(), state.token_ids.numpy(), state.block_tables.numpy()),
        (columns.num_computed, columns.stop_reason),
        rows.slots.numpy(),
        query_lens,
        rows.block_size,
        (inputs.input_ids.numpy(), inputs.positions.numpy(), inputs.slot_mapping.numpy()),
        inputs.query_start_loc.numpy(),
        inputs.seq_lens.numpy(),
        inputs.block_tables.numpy(),
    )
    return inputs
