"""A shard group's loop while its shards are away: requests move, expire, or wait for the next attempt."""

import asyncio
import logging

import pytest
from pagewire.v1 import shard_pb2
from pagewire_common.block_hash import PrefixHashes
from pagewire_router.errors import DeadlineExceeded, InvalidRequest
from pagewire_router.groups.group_loop import GroupLoop
from pagewire_router.groups.shard_client import PlanStreamOpened
from scheduling_world import NullSink, make_request

INFO = shard_pb2.ShardInfo(
    group_id="g", block_size=4, num_blocks=[64], max_num_seqs=8, max_num_batched_tokens=64, max_model_len=64
)


class Sink(NullSink):
    def __init__(self):
        self.errors = []

    def on_failed(self, error):
        self.errors.append(error)


def new_loop(*ranks):
    return GroupLoop(
        list(ranks), INFO, router_id="r", max_inflight=2, on_change=lambda group: None, on_step=lambda *result: None
    )


def new_request(deadline_s):
    request = make_request([1, 2, 3], max_tokens=5, deadline_s=deadline_s)
    request.sink = Sink()
    return request


def test_a_request_that_has_moved_expires_where_it_is():
    first, second = new_loop(), new_loop()
    request = new_request(deadline_s=10.0)
    first.submit(request)
    for group in first.give_up_all():
        second.adopt(group)
    first.end_expired(11.0)
    assert second.requests
    assert second.scheduler.schedule(9.0) is not None, "it runs there"
    first.end_expired(12.0)
    assert request.sink.errors == []
    second.end_expired(12.0)
    assert [type(error) for error in request.sink.errors] == [DeadlineExceeded]
    assert not second.requests


def test_a_request_expires_while_its_group_is_down():
    loop = new_loop()
    late, early = new_request(deadline_s=20.0), new_request(deadline_s=10.0)
    loop.submit(late)
    loop.submit(early)
    loop.end_expired(15.0)
    assert (len(early.sink.errors), len(late.sink.errors)) == (1, 0)


class FakeStream:
    """A plan stream: says what it is given and keeps the plans that it gets."""

    def __init__(self, *messages):
        self._messages = list(messages)
        self.plans = asyncio.Queue()

    async def read(self):
        if not self._messages:
            await asyncio.Event().wait()
        return self._messages.pop(0).SerializeToString()

    async def write(self, data):
        message = shard_pb2.RouterMessage.FromString(data)
        if message.HasField("plan"):
            self.plans.put_nowait(message.plan)

    async def done_writing(self): ...

    def cancel(self): ...


class FakeRank:
    def __init__(self, stream):
        self._stream = stream

    async def open_plan_stream(self, router_id, max_inflight, epoch, min_free_s=0.0):
        welcome = shard_pb2.Welcome(lease_term_ms=10_000, max_inflight=2, info=INFO, free_blocks=INFO.num_blocks)
        return PlanStreamOpened(self._stream, welcome)


async def test_the_first_plans_count_on_what_a_shard_says_it_has_cached():
    """Such as after a restart of the router."""
    prompt = list(range(1, 31))
    hashes = PrefixHashes(prompt, INFO.block_size).first(6)
    parts = [shard_pb2.CacheSnapshot(hashes=part, last=part == hashes[4:]) for part in (hashes[:4], hashes[4:])]
    stream = FakeStream(*[shard_pb2.ShardMessage(cache_snapshot=part) for part in parts])
    loop = new_loop(FakeRank(stream))
    loop.submit(make_request(prompt, max_tokens=5))
    running = asyncio.create_task(loop.run())
    async with asyncio.timeout(10):
        plan = await stream.plans.get()
        loop.stop()
        await running
    assert list(plan.run_token_budgets) == [30 - 6 * INFO.block_size]


class BrokenRank:
    """Meets a bug of ours at every attempt."""

    def __init__(self):
        self.num_attempts = 0

    async def open_plan_stream(self, router_id, max_inflight, epoch, min_free_s=0.0):
        self.num_attempts += 1
        raise KeyError("a bug")


async def test_a_bug_does_not_end_the_group_for_good(caplog):
    rank = BrokenRank()
    loop = new_loop(rank)
    with caplog.at_level(logging.ERROR):
        running = asyncio.create_task(loop.run())
        async with asyncio.timeout(10):
            while rank.num_attempts < 3:
                await asyncio.sleep(0.01)
        loop.stop()
        await running
    assert "a bug" in caplog.text
    assert not loop.is_serving


@pytest.mark.parametrize("num_waiting", [0, 3])
def test_all_requests_are_handed_over(num_waiting):
    loop = new_loop()
    requests = [new_request(deadline_s=None) for _ in range(num_waiting)]
    for request in requests:
        loop.submit(request)
    assert {group.request for group in loop.give_up_all()} == set(requests)
    assert not loop.requests
    assert len(loop.scheduler.waiting) == 0


def test_a_request_whose_grammar_was_refused_is_told_so_when_its_group_is_given_up():
    loop = new_loop(object())
    refused, other = new_request(deadline_s=None), new_request(deadline_s=None)
    refused.grammar = "bad"
    loop.submit(refused)
    loop.submit(other)
    loop.scheduler.take_messages()
    loop.scheduler.on_prepared(shard_pb2.Prepared(name="bad", code=3, message="no"))
    assert [group.request for group in loop.give_up_all()] == [other]
    assert [type(error) for error in refused.sink.errors] == [InvalidRequest]
    assert not other.sink.errors
