"""Limits that several packages know and that none of them may import from another."""

import pagewire.parameter_table
import pagewire_kernels.sample.columns


def test_client_processes_and_kernels_agree_on_what_is_greedy() -> None:
    assert pagewire.parameter_table.GREEDY_BELOW == pagewire_kernels.sample.columns.GREEDY_BELOW
