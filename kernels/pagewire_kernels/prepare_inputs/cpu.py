"""prepare_inputs on a CPU: all rows at once."""

import torch
import torch.nn.functional as F

from pagewire_kernels.prepare_inputs.inputs import PreparedInputs, StepRows


def prepare_inputs(rows: StepRows) -> PreparedInputs:
    """See the package."""
    state, slots, query_lens, block_size = rows.state, rows.slots, rows.query_lens, rows.block_size
    ints = state.ints.index_select(0, slots)
    void = ints[:, state.columns.stop_reason] != 0
    computed = ints[:, state.columns.num_computed].masked_fill(void, 0)
    lens = torch.ones_like(slots) if query_lens is None else query_lens.long()
    query_start_loc = F.pad(lens.cumsum(0), (1, 0))
    if query_lens is None:
        token_slots, positions = slots, computed
    else:
        row = torch.arange(len(slots)).repeat_interleave(lens)
        offsets = torch.arange(len(row)) - query_start_loc[row]
        token_slots, void_tokens = slots[row], void[row]
        positions = (computed[row] + offsets).masked_fill_(void_tokens, 0)
        void = void_tokens
    blocks = state.block_tables[token_slots, positions // block_size].long()
    slot_mapping = (blocks * block_size + positions % block_size).masked_fill_(void, -1)
    input_ids = state.token_ids[token_slots, positions].long().masked_fill_(void, 0)
    num_padding = rows.num_tokens - len(positions)
    return PreparedInputs(
        input_ids=F.pad(input_ids, (0, num_padding)),
        positions=F.pad(positions, (0, num_padding)),
        slot_mapping=F.pad(slot_mapping, (0, num_padding), value=-1),
        query_start_loc=query_start_loc.to(torch.int32),
        seq_lens=(computed + lens).masked_fill_(ints[:, state.columns.stop_reason] != 0, 0).to(torch.int32),
        block_tables=state.block_tables[:, : rows.max_blocks].index_select(0, slots),
    )
