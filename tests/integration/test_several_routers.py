"""Several routers for the same shards: they share the groups evenly, and adopt those of one that dies."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from live_shards import Answer, LiveShard, ask, check, live_router, live_shard
from pagewire_router.errors import ShardLost, StepFailed, Unavailable
from pagewire_router.groups.dispatcher import Dispatcher
from pagewire_router.request import Request


async def until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> float:
    """Seconds until the condition held."""
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < timeout_s, what
        await asyncio.sleep(0.01)
    return time.monotonic() - began_s


def num_driven(router: Dispatcher) -> int:
    return sum(group.is_serving for group in router.groups)


async def die(router: Dispatcher) -> None:
    """Its streams break without a word, and it does not come back."""
    router._is_stopping = True  # Its tasks may end.
    for group in router.groups:
        group.stop()
        for rank in group.ranks:
            await rank.close()


async def shards(stack: AsyncExitStack, directory: Path, num: int) -> list[LiveShard]:
    return [await stack.enter_async_context(live_shard(directory, f"g{i}")) for i in range(num)]


async def test_a_second_router_gets_half_of_the_groups_and_all_when_the_first_dies(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        addresses = [shard.address for shard in await shards(stack, tmp_path, 2)]
        first = await stack.enter_async_context(live_router(*addresses))
        await until(lambda: num_driven(first) == 2, "the first router drives all groups")
        asked = [ask(first, number) for number in range(8)]
        for _, answer in asked:
            await answer.begun()
        second = await stack.enter_async_context(live_router(*addresses))
        await until(lambda: (num_driven(first), num_driven(second)) == (1, 1), "each drives one")
        for request, answer in asked:
            check(request, await answer.end())
        await check_both(first, second)
        await die(first)
        took_s = await until(lambda: num_driven(second) == 2, "the second router adopts the other group")
        assert took_s < 20, "a lease that ended with its stream need not lapse"
        request, answer = ask(second, 9)
        check(request, await answer.end())


async def test_a_router_that_is_told_to_stop_hands_over_what_clients_resume_and_finishes_the_rest(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        addresses = [shard.address for shard in await shards(stack, tmp_path, 2)]
        async with live_router(*addresses) as alone:
            await until(lambda: num_driven(alone) == 2, "it drives all groups")
            request, answer = ask(alone, 1, 60, resumes=True)
            await alone.drain(30)
            check(request, await answer.end())
        first = await stack.enter_async_context(live_router(*addresses))
        second = await stack.enter_async_context(live_router(*addresses))
        await until(lambda: num_driven(first) + num_driven(second) == 2, "all groups are driven", 90)
        await until(lambda: num_driven(first) == num_driven(second) == 1, "each drives one")
        kept, kept_answer = ask(first, 2, 300)
        _, moved_answer = ask(first, 3, 300, resumes=True)
        await kept_answer.begun()
        await moved_answer.begun()
        await until(lambda: knows_of(first, second), "the first knows that the second drives a group")
        draining = asyncio.create_task(first.drain(60))
        await moved_answer.end()
        assert isinstance(moved_answer.error, Unavailable)
        assert not kept_answer.done.is_set()
        check(kept, await kept_answer.end())
        await draining
        again, answer = ask(second, 3, 300)
        check(again, await answer.end())
        assert answer.token_ids[: len(moved_answer.token_ids)] == moved_answer.token_ids


async def test_requests_whose_router_has_lost_its_only_shard_are_handed_to_the_router_that_has_another(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        both = await shards(stack, tmp_path, 2)
        routers = [await stack.enter_async_context(live_router(*(shard.address for shard in both))) for _ in range(2)]
        await until(lambda: [num_driven(router) for router in routers] == [1, 1], "each drives one", 90)
        first, second = routers
        await until(lambda: knows_of(first, second), "the first knows that the second drives a group")
        (group,) = [group for group in first.groups if group.is_serving]
        (lost,) = [shard for shard in both if shard.group_id == group.info.group_id]
        _, waiting = ask(first, 2, 300)
        request, moved = ask(first, 3, 300, resumes=True)
        await waiting.begun()
        await moved.begun()
        await lost.die()
        await moved.end()
        assert isinstance(moved.error, ShardLost), "it was in flight"
        assert second._losses.read(moved.error.token, request) == 1, "since its last token"
        assert not waiting.done.is_set(), "its client would have to begin anew: it waits for the shard"
        with pytest.raises(Unavailable, match="another router"):
            ask(first, 4, resumes=True)
        asked = [ask(second, number, 300) for number in range(4, 8)]
        (serving,) = [group for group in second.groups if group.is_serving]
        incarnation = group._deaths.incarnation
        for number, token in ((8, first._losses.write(2, request, incarnation)), (3, f"02{'a5' * 16}")):
            asked.append(ask(second, number, 300, shard_loss_token=token))
        assert not serving.scheduler.suspects, "no router has said that shards were lost over this request"
        asked.append(ask(second, 3, 300, shard_loss_token=first._losses.write(2, request, incarnation)))
        assert len(serving.scheduler.suspects) == 1, "shards may die of it: it runs alone"
        with pytest.raises(StepFailed):
            ask(second, 3, 300, shard_loss_token=first._losses.write(6, request, incarnation))
        for request, answer in asked:
            check(request, await answer.end())


def knows_of(router: Dispatcher, other: Dispatcher) -> bool:
    holders = {member.info.lease_holder for member in router._directory.members if member.info is not None}
    return other._router_id in holders


async def check_both(*routers: Dispatcher) -> None:
    asked: list[tuple[Request, Answer]] = [ask(router, 3, 20) for router in routers]
    for request, answer in asked:
        check(request, await answer.end())


@pytest.mark.slow  # Takes seconds; the tests above show what it is made of.
async def test_a_router_that_stops_leaves_its_groups_to_the_others(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        addresses = [shard.address for shard in await shards(stack, tmp_path, 3)]
        async with live_router(*addresses) as first:
            await until(lambda: num_driven(first) == 3, "the first router drives all groups")
            second = await stack.enter_async_context(live_router(*addresses))
            await until(lambda: num_driven(second) >= 1, "the second gets one")
            assert num_driven(first) == 2
        await until(lambda: num_driven(second) == 3, "the second drives all of them")
        await check_both(second)
