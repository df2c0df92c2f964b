"""Several routers for the same shards: they share the groups evenly, and adopt those of one that dies."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from live_shards import Answer, LiveShard, ask, check, live_router, live_shard
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


async def check_both(*routers: Dispatcher) -> None:
    asked: list[tuple[Request, Answer]] = [ask(router, 3, 20) for router in routers]
    for request, answer in asked:
        check(request, await answer.end())


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
