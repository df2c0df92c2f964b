"""Faults under load lose no request and change none. `make chaos` tries more requests, and prints the table."""

import pytest
from chaos_faults import FAULTS, chaos_cluster, try_fault
from chaos_load import specs, undisturbed


async def check(fault: str, *, num_streams: int, num_tokens: int, num_each: int) -> None:
    asked = specs(num_streams, num_tokens)
    async with chaos_cluster(num_shards=num_each, num_routers=num_each) as chaos:
        expected = await undisturbed(chaos.targets, asked)
        row = await try_fault(chaos, fault, FAULTS[fault], asked, expected, num_streams)
        assert "Traceback" not in chaos.log(), chaos.log()
    assert (row.errors, row.differing) == ([], [])
    assert row.num_requests >= num_streams
    assert row.num_disturbed == num_streams


@pytest.mark.slow
async def test_streams_of_every_kind_outlast_the_only_router() -> None:
    await check("router killed", num_streams=8, num_tokens=60, num_each=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", FAULTS)
async def test_streams_of_every_kind_outlast(fault: str) -> None:
    await check(fault, num_streams=16, num_tokens=120, num_each=2)
