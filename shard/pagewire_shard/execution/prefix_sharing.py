"""What the decodes of a step share: a plan for attention, made on the host when a step's rows change.

Costs a comparison of lists in a step whose rows are those of the step before, some tens of microseconds where rows
change and nothing is shared, and some hundreds where 256 rows share a tree of prefixes.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Items

import numpy as np
import torch
from pagewire_kernels.paged_attention.shared_prefixes import PlanLayout, SharedPrefixes, SharedRun, make_plan
from pagewire_kernels.paged_attention.shared_runs import find_runs

from pagewire_shard.engine.runner import RunBatch
from pagewire_shard.engine.sequence import Sequence
from pagewire_shard.execution.device_state import DeviceState, SlotRow
from pagewire_shard.execution.host_transfer import Uplink

MIN_SAVED_BYTES = 80 << 20
"""Bytes of keys and values that a layer must not have to read again, for sharing to pay for its launch and its partial
results. Reading again is cheap while the bytes are in the cache of the device: on an H200, heads of Llama-3.1-8B,
saving 66 MB lost 3 us (64 rows, 256 keys), 59 MB (8 rows, 2,048 keys) was even, and 134 MB won 4 to 6 us."""


class PrefixSharing:
    """Finds shared runs by the slots' block tables, of which it keeps a copy, and has their plan on the device."""

    def __init__(self, layout: PlanLayout, state: DeviceState, block_size: int, bytes_per_token: int) -> None:
        """bytes_per_token: Keys and values of a token in one layer."""
        self._layout = layout
        self._block_size = block_size
        self._min_saved_tokens = MIN_SAVED_BYTES // bytes_per_token
        self._tables = np.zeros(state.block_tables.shape, np.int32)
        self._plan = torch.zeros(layout.num_values, dtype=torch.int32, device=state.device)
        self.shared = SharedPrefixes.of(layout, self._plan, state.block_tables)
        """The plan of the last step; of what shares nothing, empty."""
        self._decodes: list[Sequence] = []
        """The sequences that it was made for."""
        self._is_shared = False

    def apply(self, admitted: Mapping[int, SlotRow], updates: Items[tuple[int, int, int]]) -> None:
        """Takes in new sequences by slot, and then (slot, index, block): entries of block tables."""
        for slot, row in admitted.items():
            self._tables[slot, : len(row.blocks)] = row.blocks
        for slot, index, block in updates:
            self._tables[slot, index] = block

    def plan(self, batch: RunBatch, uplink: Uplink) -> bool:
        """Makes `shared` the plan of the batch's decodes. Returns whether they share anything that pays."""
        decodes = batch.sequences[: batch.num_decodes]
        if decodes != self._decodes:
            self._decodes = decodes
            runs = self._find_runs(batch, len(decodes))
            if runs or self._is_shared:
                uplink.upload(make_plan(self._layout, runs), torch.int32, out=self._plan)
            self._is_shared = bool(runs)
        return self._is_shared

    def _find_runs(self, batch: RunBatch, num_decodes: int) -> list[SharedRun]:
        if num_decodes < 2:
            return []
        # Full blocks before the row's new token. Where tokens may be rejected, those of the step count twice.
        num_blocks = [
            (sequence.num_computed_tokens - sequence.num_unverified_tokens - 1) // self._block_size
            for sequence in batch.sequences[:num_decodes]
        ]
        slots = batch.slots[:num_decodes]
        runs = find_runs(self._tables, slots, np.array(num_blocks), self._block_size, self._layout)
        num_saved = sum((len(run.rows) - 1) * (run.end - run.begin) for run in runs)
        return runs if num_saved >= self._min_saved_tokens else []
