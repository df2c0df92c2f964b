"""What a kernel reads by a plan of shared prefixes (paged_attention/shared_prefixes.py), row by row."""

from typing import NamedTuple

import numpy as np
from pagewire_kernels.paged_attention.shared_prefixes import PlanLayout


class Piece(NamedTuple):
    """Keys begin to end, from the blocks of one row of the plan's block tables."""

    table: int
    begin: int
    end: int


def read_plan(layout: PlanLayout, plan: np.ndarray) -> tuple[list[list[Piece]], list[int]]:
    """The pieces that are added up for each row, in order of keys; and how many keys each share takes.

    Asserts that every slot that a row adds up is written once, and no other one.
    """
    shares, items, entries, rows = layout.views(plan)
    by_slot: dict[int, tuple[int, Piece]] = {}
    keys_of_shares = []
    for share in range(layout.num_shares):
        keys_of_shares.append(0)
        for table, begin, end, first_entry, num_rows, piece, *_ in items[shares[share] : shares[share + 1]].tolist():
            assert 0 < num_rows <= layout.rows_per_tile
            keys_of_shares[-1] += end - begin
            for row, slot in entries[first_entry : first_entry + num_rows].tolist():
                assert slot + piece not in by_slot, "two items write one slot"
                by_slot[slot + piece] = (row, Piece(table, begin, end))
    found: list[list[Piece]] = []
    for row, (_, first_slot, num_slots, _) in enumerate(rows.tolist()):
        slots = [by_slot.pop(first_slot + i) for i in range(num_slots)]
        assert all(owner == row for owner, _ in slots)
        found.append(sorted((piece for _, piece in slots), key=lambda piece: piece.begin))
    assert not by_slot, "slots that no row adds up"
    return found, keys_of_shares
