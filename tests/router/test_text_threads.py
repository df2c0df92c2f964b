"""Work on texts: beside the event loop, in a bounded queue, by turns, and never in the way of the process's end."""

import asyncio
import subprocess
import sys
import threading

import pytest
from pagewire_router.caller import Caller
from pagewire_router.errors import QueueFull, Unavailable
from pagewire_router.text.text_threads import QueueBounds, TextThreads

SOMEBODY = Caller.of("ipv4:10.0.0.9:1000")


@pytest.fixture
def gate():
    """Holds the functions of a test up until it is set."""
    event = threading.Event()
    yield event
    event.set()


def started(threads, gate, *, number=1, num_chars=100, result=None, caller=SOMEBODY):
    """Tasks that wait for the gate on a thread."""

    def work(text):
        assert gate.wait(30)
        return text

    return [asyncio.create_task(threads.run(work, result, num_chars=num_chars, caller=caller)) for _ in range(number)]


async def until_waiting(threads, number):
    async with asyncio.timeout(10):
        while threads.num_waiting != number:
            await asyncio.sleep(0.001)


async def test_results_and_errors_come_back():
    threads = TextThreads(1, QueueBounds())
    assert await threads.run(str.upper, "abc", num_chars=3, caller=SOMEBODY) == "ABC"
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda number: 1 // number, 0, num_chars=1, caller=SOMEBODY)
    thread = await threads.run(lambda _: threading.current_thread(), "", num_chars=1, caller=SOMEBODY)
    assert thread is not threading.main_thread()
    threads.close()


@pytest.mark.parametrize(
    ("bounds", "what"),
    [
        (QueueBounds(max_requests=3), "3 requests wait, at most 3 may"),
        (QueueBounds(max_requests=10, num_queued=lambda: 7), "10 requests wait, at most 10 may"),
        (QueueBounds(max_tokens=80), "about 75 tokens wait to be tokenized, at most 80 may"),
    ],
)
async def test_beyond_its_bounds_texts_are_refused_and_told_when_to_come_back(gate, bounds, what):
    threads = TextThreads(1, bounds)
    tasks = started(threads, gate, number=4)
    await until_waiting(threads, 3)
    with pytest.raises(QueueFull, match=what) as refused:
        await threads.run(str.upper, "abc", num_chars=100, caller=SOMEBODY)
    assert 0.1 <= refused.value.retry_after_s <= 5.0
    gate.set()
    await asyncio.gather(*tasks)
    assert await threads.run(str.upper, "abc", num_chars=100, caller=SOMEBODY) == "ABC"
    threads.close()


async def test_a_client_with_one_text_does_not_wait_for_all_of_another(gate):
    threads = TextThreads(1, QueueBounds())
    ended = []

    async def call(peer, number):
        (task,) = started(threads, gate, result=(peer, number), caller=Caller.of(peer))
        ended.append(await task)

    tasks = [asyncio.create_task(call("ipv4:10.0.0.1:1000", number)) for number in range(50)]
    await until_waiting(threads, 49)
    tasks.append(asyncio.create_task(call("ipv4:10.0.0.2:1000", 0)))
    await until_waiting(threads, 50)
    gate.set()
    await asyncio.gather(*tasks)
    assert ended.index(("ipv4:10.0.0.2:1000", 0)) <= 2
    threads.close()


async def test_a_full_queue_refuses_the_client_that_filled_it(gate):
    threads = TextThreads(1, QueueBounds(max_requests=6))

    async def call(peer):
        return await threads.run(lambda text: (gate.wait(30), text)[1], peer, num_chars=100, caller=Caller.of(peer))

    flood = [asyncio.create_task(call("ipv4:10.0.0.1:1000")) for _ in range(7)]
    await until_waiting(threads, 6)
    others = [asyncio.create_task(call(f"ipv4:10.0.0.{host}:1000")) for host in (2, 3, 4)]
    async with asyncio.timeout(5):
        while sum(task.done() for task in flood) < 3:
            await asyncio.sleep(0.001)
    assert threads.num_waiting == 6
    more_of_the_flood = asyncio.create_task(call("ipv4:10.0.0.1:1000"))
    with pytest.raises(QueueFull):
        await more_of_the_flood
    gate.set()
    results = await asyncio.gather(*flood, return_exceptions=True)
    assert [isinstance(result, QueueFull) for result in results] == [False] * 4 + [True] * 3
    assert await asyncio.gather(*others) == [f"ipv4:10.0.0.{host}:1000" for host in (2, 3, 4)]
    threads.close()


async def test_a_text_whose_call_has_ended_leaves_the_queue(gate):
    threads = TextThreads(1, QueueBounds(max_requests=5))
    tasks = started(threads, gate, number=6)
    await until_waiting(threads, 5)
    for task in tasks:
        task.cancel()
    await until_waiting(threads, 0)
    waiting = asyncio.create_task(threads.run(str.upper, "abc", num_chars=100, caller=SOMEBODY))
    await until_waiting(threads, 1)
    gate.set()
    assert await waiting == "ABC", "the thread of a call that has ended is free when its work is"
    threads.close()


def test_the_process_ends_whatever_a_thread_does():
    program = (
        "import asyncio, time\n"
        "from pagewire_router.caller import Caller\n"
        "from pagewire_router.text.text_threads import *\n"
        "threads = TextThreads(1, QueueBounds())\n"
        "async def main():\n"
        "    sleep = threads.run(time.sleep, 600, num_chars=1, caller=Caller.of('ipv4:10.0.0.9:1000'))\n"
        "    await asyncio.wait([asyncio.ensure_future(sleep)], timeout=0.2)\n"
        "asyncio.run(main())\n"
        "threads.close()\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=180, check=False).returncode == 0


async def test_closing_refuses_texts_that_wait_and_those_to_come(gate):
    threads = TextThreads(1, QueueBounds())
    running, *waiting = started(threads, gate, number=4, result="done")
    await until_waiting(threads, 3)
    threads.close()
    for task in waiting:
        with pytest.raises(Unavailable) as caught:
            await asyncio.wait_for(task, 5)
        assert caught.value.retry_after_s
    with pytest.raises(Unavailable):
        await threads.run(str.upper, "abc", num_chars=3, caller=SOMEBODY)
    gate.set()
    assert await running == "done"
    assert threads.num_waiting == 0
