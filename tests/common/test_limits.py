"""Limits that several packages know and that none of them may import from another."""

import pagewire.sampling_params
import pagewire_common.protocol
import pagewire_kernels.sample.columns


def test_client_processes_and_kernels_agree_on_what_is_greedy() -> None:
    assert (
        pagewire.sampling_params.GREEDY_BELOW
        == pagewire_common.protocol.GREEDY_BELOW
        == pagewire_kernels.sample.columns.GREEDY_BELOW
    )
