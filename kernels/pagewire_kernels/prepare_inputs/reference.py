"""The definition of prepare_inputs."""

import torch

from pagewire_kernels.prepare_inputs.inputs import PreparedInputs, StepRows


def prepare_inputs(rows: StepRows) -> PreparedInputs:
    """Row by row: a live row's tokens stand at num_computed and after it."""
    state, slots, block_size = rows.state, rows.slots, rows.block_size
    num_rows = len(slots)
    inputs = PreparedInputs(
        input_ids=slots.new_zeros(rows.num_tokens),
        positions=slots.new_zeros(rows.num_tokens),
        slot_mapping=slots.new_full((rows.num_tokens,), -1),
        query_start_loc=slots.new_zeros(num_rows + 1, dtype=torch.int32),
        seq_lens=slots.new_zeros(num_rows, dtype=torch.int32),
        block_tables=state.block_tables[slots, : rows.max_blocks],
    )
    lens = torch.ones_like(slots) if rows.query_lens is None else rows.query_lens
    inputs.query_start_loc[1:] = lens.cumsum(0)
    for row, (slot, query_len) in enumerate(zip(slots.tolist(), lens.tolist(), strict=True)):
        if state.ints[slot, state.columns.stop_reason] != 0:
            continue
        positions = state.ints[slot, state.columns.num_computed] + torch.arange(query_len, device=slots.device)
        blocks = state.block_tables[slot, positions // block_size].long()
        start = int(inputs.query_start_loc[row])
        inputs.positions[start : start + query_len] = positions
        inputs.input_ids[start : start + query_len] = state.token_ids[slot, positions].long()
        inputs.slot_mapping[start : start + query_len] = blocks * block_size + positions % block_size
        inputs.seq_lens[row] = state.ints[slot, state.columns.num_computed] + query_len
    return inputs
