"""Coalescing under a clock that the test turns."""

import asyncio
import heapq
from itertools import pairwise

import pytest
from pagewire_router.output.pacer import WAKES_PER_TURN, Pacer
from pagewire_router.output.write_budget import WriteBudget


class Clock:
    """An event loop's clock and queue; time passes when the test says so."""

    def __init__(self):
        self.now_s, self.soon, self.timers, self.num = 100.0, [], [], 0

    def time(self):
        return self.now_s

    def call_soon(self, callback):
        self.soon.append(callback)

    def call_at(self, when, callback):
        self.num += 1
        entry = [when, self.num, callback]
        heapq.heappush(self.timers, entry)
        return type("Handle", (), {"cancel": lambda _: entry.__setitem__(2, lambda: None)})()

    def turn(self):
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()

    async def advance(self, seconds):
        await self.settle()
        end_s = self.now_s + seconds
        while self.timers and self.timers[0][0] <= end_s:
            self.now_s = max(self.now_s, self.timers[0][0])
            heapq.heappop(self.timers)[2]()
            await self.settle()
        self.now_s = end_s
        await self.settle()

    async def settle(self):
        while self.soon:
            self.turn()
        for _ in range(5):
            await asyncio.sleep(0)


class Reader:
    """A stream and the times at which it was woken."""

    def __init__(self, writer, clock):
        self.stream = writer.open().__enter__()
        self.times = []
        self.clock = clock
        self.task = asyncio.create_task(self.read())

    async def read(self):
        while True:
            await self.stream.wait()
            self.times.append(self.clock.now_s)

    def close(self):
        self.task.cancel()
        self.stream.__exit__(None, None, None)


def fixed_budget():
    """A budget whose clocks stand still, so that it stays where it begins: at 2000 writes per second."""
    return WriteBudget(lambda: 0.0, lambda: 0.0)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def writer(clock):
    return Pacer(clock, max_floor_s=0.05, budget=fixed_budget())


async def test_one_stream_is_written_at_once_for_every_token(clock, writer):
    reader = Reader(writer, clock)
    await clock.settle()
    expected = []
    for _ in range(10):
        reader.stream.notify()
        expected.append(clock.now_s)
        await clock.advance(0.002)
    assert reader.times == expected
    reader.close()


async def test_the_floor_grows_with_streams_up_to_its_limit(clock, writer):
    floors = []
    readers = []
    for count in (10, 40, 100, 400):
        while len(readers) < count:
            readers.append(Reader(writer, clock))
            readers[-1].stream.notify()
        await clock.settle()
        floors.append(writer.floor_s)
    assert floors == [0.005, 0.02, 0.05, 0.05]
    for reader in readers:
        reader.close()
    assert writer.num_streaming == 0
    assert writer.floor_s == 0


async def test_under_load_a_stream_is_written_once_in_a_floor_whatever_arrives(clock, writer):
    readers = [Reader(writer, clock) for _ in range(400)]
    await clock.settle()
    for _ in range(100):
        for reader in readers:
            reader.stream.notify()
        await clock.advance(0.01)
    await clock.advance(0.1)
    for reader in readers:
        # The first token at once, then every 50 ms for a second, and the last tokens.
        assert reader.times[0] == 100.0
        gaps = [b - a for a, b in pairwise(reader.times)]
        assert all(gap > 0.0499 for gap in gaps)
        assert len(gaps) == 20
        reader.close()


async def test_an_end_does_not_wait_for_the_floor(clock, writer):
    readers = [Reader(writer, clock) for _ in range(200)]
    for reader in readers:
        reader.stream.notify()
    await clock.settle()
    await clock.advance(0.01)
    readers[0].stream.notify()
    await clock.settle()
    assert len(readers[0].times) == 1
    readers[0].stream.notify_now()
    readers[0].stream.notify_now()
    await clock.settle()
    assert readers[0].times == [100.0, 100.01]
    await clock.advance(1.0)
    assert len(readers[0].times) == 2
    for reader in readers:
        reader.close()


async def test_a_turn_of_the_loop_wakes_a_bounded_number_of_streams(clock, writer):
    readers = [Reader(writer, clock) for _ in range(3 * WAKES_PER_TURN)]
    await asyncio.sleep(0)
    for reader in readers:
        reader.stream.notify()
    for turn in range(1, 4):
        clock.turn()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert sum(len(reader.times) for reader in readers) == turn * WAKES_PER_TURN
    for reader in readers:
        reader.close()


async def test_a_closed_stream_is_not_woken(clock, writer):
    readers = [Reader(writer, clock) for _ in range(200)]
    for reader in readers:
        reader.stream.notify()
    await clock.settle()
    readers[0].stream.notify()
    readers[0].close()
    readers[0].stream.notify()
    readers[0].stream.notify_now()
    await clock.advance(1.0)
    assert len(readers[0].times) == 1
    for reader in readers[1:]:
        reader.close()
