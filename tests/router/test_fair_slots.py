"""Slots that clients take turns in."""

import asyncio

from pagewire_router.caller import Caller
from pagewire_router.fair_slots import FairSlots

A, B = Caller("a", "a:1"), Caller("b", "b:1")
SECOND_OF_A = Caller("a", "a:2")


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def order_of(slots, *callers):
    """In which order callers get the only slot, which each of them gives back at once."""
    served = []

    async def take(number, caller):
        await slots.wait(caller)
        served.append(number)
        slots.release()

    assert slots.take()
    tasks = [asyncio.create_task(take(number, caller)) for number, caller in enumerate(callers)]
    await settle()
    assert slots.num_waiting == len(callers)
    slots.release()
    await asyncio.gather(*tasks)
    assert slots.num_waiting == 0
    return served


async def test_free_slots_are_taken_at_once():
    slots = FairSlots(2)
    await slots.wait(A)
    await slots.wait(A)
    assert not slots.take()
    slots.release()
    assert slots.take()


async def test_one_client_is_served_in_order():
    assert await order_of(FairSlots(1), A, A, A) == [0, 1, 2]


async def test_a_client_that_asks_once_waits_for_one_of_the_others():
    assert await order_of(FairSlots(1), A, A, A, A, B) == [0, 4, 1, 2, 3]


async def test_more_connections_of_one_owner_give_it_no_more_turns():
    assert await order_of(FairSlots(1), A, A, SECOND_OF_A, SECOND_OF_A, B, B) == [0, 4, 2, 5, 1, 3]


async def test_those_that_give_up_leave_without_a_trace():
    slots = FairSlots(1)
    assert slots.take()
    tasks = [asyncio.create_task(slots.wait(caller)) for caller in (A, A, B)]
    await settle()
    tasks[0].cancel()
    tasks[2].cancel()
    await settle()
    assert slots.num_waiting == 1
    slots.release()
    await tasks[1]
    assert not slots._owners
    slots.release()
    assert slots.take()


async def test_a_slot_given_to_one_that_gives_up_at_once_goes_to_the_next():
    slots = FairSlots(1)
    assert slots.take()
    first, second = (asyncio.create_task(slots.wait(caller)) for caller in (A, B))
    await settle()
    slots.release()
    first.cancel()
    await asyncio.wait_for(second, 5)
    assert first.cancelled() or (await asyncio.gather(first, return_exceptions=True))
    slots.release()
    assert slots.take()


async def test_one_that_is_displaced_and_gives_up_gives_no_slot_back():
    slots = FairSlots(1)
    assert slots.take()
    tasks = [asyncio.create_task(slots.wait(A)) for _ in range(3)]
    await settle()
    assert slots.displace(B, RuntimeError("no room"))
    tasks[-1].cancel()
    await asyncio.gather(tasks[-1], return_exceptions=True)
    for task in tasks[:-1]:
        assert not task.done()
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not slots.take(), "the only slot is taken"
    slots.release()
    assert slots.take()
