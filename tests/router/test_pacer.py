"""Coalescing under a clock that the test turns."""

import heapq
from itertools import pairwise

import pytest
from pagewire_router.output.pacer import WRITES_PER_SHORT_TURN, WRITES_PER_TURN, Pacer
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

    def advance(self, seconds):
        self.settle()
        end_s = self.now_s + seconds
        while self.timers and self.timers[0][0] <= end_s:
            self.now_s = max(self.now_s, self.timers[0][0])
            heapq.heappop(self.timers)[2]()
            self.settle()
        self.now_s = end_s
        self.settle()

    def settle(self):
        while self.soon:
            self.turn()


class Reader:
    """A stream and the times at which it was called."""

    def __init__(self, writer, clock):
        self.stream = writer.open().__enter__()
        self.clock, self.times = clock, []
        self.stream.call_when_due(self.write)

    def write(self):
        self.times.append(self.clock.now_s)
        return True

    def close(self):
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


def test_one_stream_is_written_at_once_for_every_token(clock, writer):
    reader = Reader(writer, clock)
    clock.settle()
    expected = []
    for _ in range(10):
        reader.stream.notify()
        expected.append(clock.now_s)
        clock.advance(0.002)
    assert reader.times == expected
    reader.close()


def test_the_floor_grows_with_streams_up_to_its_limit(clock, writer):
    floors = []
    readers = []
    for count in (10, 40, 100, 400):
        while len(readers) < count:
            readers.append(Reader(writer, clock))
            readers[-1].stream.notify()
        clock.settle()
        floors.append(writer.floor_s)
    assert floors == [0.005, 0.02, 0.05, 0.05]
    for reader in readers:
        reader.close()
    assert writer.num_streaming == 0
    assert writer.floor_s == 0


def test_under_load_a_stream_is_written_once_in_a_floor_whatever_arrives(clock, writer):
    readers = [Reader(writer, clock) for _ in range(400)]
    clock.settle()
    for _ in range(100):
        for reader in readers:
            reader.stream.notify()
        clock.advance(0.01)
    clock.advance(0.1)
    for reader in readers:
        # The first token at once, then every 50 ms for a second, and the last tokens.
        assert reader.times[0] == 100.0
        gaps = [b - a for a, b in pairwise(reader.times)]
        assert all(gap > 0.0499 for gap in gaps)
        assert len(gaps) == 20
        reader.close()


def test_an_end_does_not_wait_for_the_floor(clock, writer):
    readers = [Reader(writer, clock) for _ in range(200)]
    for reader in readers:
        reader.stream.notify()
    clock.settle()
    clock.advance(0.01)
    readers[0].stream.notify()
    clock.settle()
    assert len(readers[0].times) == 1
    readers[0].stream.notify_now()
    readers[0].stream.notify_now()
    clock.settle()
    assert readers[0].times == [100.0, 100.01]
    clock.advance(1.0)
    assert len(readers[0].times) == 2
    for reader in readers:
        reader.close()


def test_a_turn_of_the_loop_writes_a_bounded_number_of_streams(clock, writer):
    readers = [Reader(writer, clock) for _ in range(3 * WRITES_PER_TURN)]
    for reader in readers:
        reader.stream.notify()
    for turn in range(1, 4):
        clock.turn()
        assert sum(len(reader.times) for reader in readers) == turn * WRITES_PER_TURN
    for reader in readers:
        reader.close()


def test_the_budget_counts_the_writes_that_were_begun(clock):
    counted = []

    class Counting(WriteBudget):
        def on_turn(self, num_writes):
            counted.append(num_writes)

    pacer = Pacer(clock, max_floor_s=0.05, budget=Counting(lambda: 0.0, lambda: 0.0))
    streams = [pacer.open().__enter__() for _ in range(WRITES_PER_TURN + 4)]
    for number, stream in enumerate(streams):
        stream.call_when_due(lambda has_output=number % 4 == 0: has_output)
        stream.notify()
    clock.settle()
    assert counted == [0, WRITES_PER_TURN // 4, 1]


def test_first_output_comes_before_that_of_streams_that_run(clock, writer):
    running = [Reader(writer, clock) for _ in range(3 * WRITES_PER_TURN)]
    for reader in running:
        reader.stream.notify()
    clock.settle()
    clock.advance(1.0)
    for reader in running:
        reader.stream.notify()
    new = [Reader(writer, clock) for _ in range(3)]
    for reader in new:
        reader.stream.notify()
    clock.turn()
    assert [len(reader.times) for reader in new] == [1] * 3
    assert sum(len(reader.times) == 2 for reader in running) == WRITES_PER_TURN - 3
    clock.settle()
    assert [len(reader.times) for reader in running] == [2] * len(running)
    for reader in running + new:
        reader.close()


def test_turns_are_short_while_calls_come(clock, writer):
    readers = [Reader(writer, clock) for _ in range(100)]
    for reader in readers:
        reader.stream.notify()
    num_written = []
    for turn in range(8):
        if turn < 4:
            writer.on_call()
        clock.turn()
        num_written.append(sum(len(reader.times) for reader in readers) - sum(num_written))
        clock.now_s += 0.002
    assert num_written[:6] == [WRITES_PER_SHORT_TURN] * 6
    assert num_written[6:] == [WRITES_PER_TURN] * 2
    for reader in readers:
        reader.close()


def test_a_closed_stream_is_not_written(clock, writer):
    readers = [Reader(writer, clock) for _ in range(200)]
    for reader in readers:
        reader.stream.notify()
    clock.settle()
    readers[0].stream.notify()
    readers[0].close()
    readers[0].stream.notify()
    readers[0].stream.notify_now()
    clock.advance(1.0)
    assert len(readers[0].times) == 1
    for reader in readers[1:]:
        reader.close()


def test_output_that_was_due_before_anybody_listened_is_not_lost(clock, writer):
    stream, calls = writer.open().__enter__(), []
    stream.notify()
    clock.settle()
    stream.call_when_due(lambda: calls.append(clock.now_s) is None)
    assert calls == [100.0]
    clock.advance(1.0)
    assert calls == [100.0]
    stream.notify()
    clock.settle()
    assert calls == [100.0, 101.0]
