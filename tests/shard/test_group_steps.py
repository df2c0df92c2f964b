"""Step threads of a group: all ranks run what rank 0 is told, in its order, whatever becomes of the streams."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from pagewire.v1 import shard_pb2
from pagewire_shard.errors import InvalidMessage, PlanRefused, RankRefused, StaleEpoch
from pagewire_shard.stepping.group_steps import FollowingSteps, LeadingSteps

from tests.shard.test_step_thread import ListSink, plan, until

TIMEOUT_S = 60.0


class Pair:
    """Rank 0 and another one, whose channel is a function call."""

    def __init__(self, fake_engine: Callable[..., Any]) -> None:
        self.engines = [fake_engine(), fake_engine()]
        self.broken: list[str] = []
        follower = self.follower = FollowingSteps(lambda: self.engines[1], None, self.broken.append)
        self.leader = LeadingSteps(lambda: self.engines[0], None, follower.take_entry, self.broken.append)
        for steps in (self.leader, self.follower):
            steps.start()

    def run(self) -> list[list[str]]:
        """What each engine has begun, launched and ended; the order of collecting is each rank's own."""
        return [[line for line in engine.log if not line.startswith("collect")] for engine in self.engines]

    def stop(self) -> None:
        for engine, steps in zip(self.engines, (self.leader, self.follower), strict=True):
            engine.may_launch.set()
            steps.stop()
            assert steps.join(TIMEOUT_S)


@pytest.fixture
def pair(fake_engine: Callable[..., Any]) -> Iterator[Pair]:
    pair = Pair(fake_engine)
    yield pair
    pair.stop()


async def test_the_other_rank_runs_what_rank_0_runs_and_reports_its_digest_alone(pair: Pair) -> None:
    sinks = [ListSink(), ListSink()]
    pair.leader.begin_epoch(sinks[0], 2, 1).result(TIMEOUT_S)
    start = pair.follower.begin_epoch(sinks[1], 2, 1).result(TIMEOUT_S)
    assert start.free_blocks == [10]
    for step in (1, 2, 3):
        pair.leader.submit(sinks[0], plan(step))
    await until(lambda: len(sinks[0].results) == len(sinks[1].results) == 3)
    assert pair.run() == [["begin 2", "launch 1", "launch 2", "launch 3"]] * 2
    assert list(sinks[0].results[0].sampled_token_ids) == [1]
    assert sinks[1].results == [shard_pb2.StepResult(step=step) for step in (1, 2, 3)]


def test_a_plan_on_the_stream_of_another_rank_is_refused(pair: Pair) -> None:
    sinks = [ListSink(), ListSink()]
    pair.leader.begin_epoch(sinks[0], 2, 1)
    pair.follower.begin_epoch(sinks[1], 2, 1).result(TIMEOUT_S)
    with pytest.raises(InvalidMessage, match="step 1 comes to another rank than 0"):
        pair.follower.submit(sinks[1], plan(1))


async def test_plans_that_were_passed_on_are_run_by_all_when_the_streams_end(pair: Pair) -> None:
    """The router is gone while one rank runs step 1 and the other has not begun: both run all three."""
    sinks = [ListSink(), ListSink()]
    pair.leader.begin_epoch(sinks[0], 3, 1)
    pair.follower.begin_epoch(sinks[1], 3, 1).result(TIMEOUT_S)
    pair.engines[1].may_launch.clear()
    for step in (1, 2, 3):
        pair.leader.submit(sinks[0], plan(step))
    pair.follower.end_epoch(sinks[1])
    pair.leader.end_epoch(sinks[0])
    await until(lambda: pair.run()[0][-1:] == ["end"])
    pair.engines[1].may_launch.set()
    await until(lambda: pair.run()[1][-1:] == ["end"])
    assert pair.run() == [["begin 3", "launch 1", "launch 2", "launch 3", "end"]] * 2
    assert not sinks[1].results, "its stream had ended"


async def test_a_plan_that_is_refused_ends_the_epoch_on_all_ranks(pair: Pair) -> None:
    for engine in pair.engines:
        engine.refusals[2] = PlanRefused(grpc.StatusCode.INVALID_ARGUMENT, "no")
        engine.may_launch.clear()
    sinks = [ListSink(), ListSink()]
    pair.leader.begin_epoch(sinks[0], 3, 1)
    pair.follower.begin_epoch(sinks[1], 3, 1).result(TIMEOUT_S)
    for step in (1, 2, 3):
        pair.leader.submit(sinks[0], plan(step))
    for engine in pair.engines:
        engine.may_launch.set()
    await until(lambda: all(sink.error is not None for sink in sinks))
    assert pair.run() == [["begin 3", "launch 1", "launch 2", "end"]] * 2


async def test_a_stream_of_an_epoch_that_is_over_is_told_so(pair: Pair) -> None:
    waiting = pair.follower.begin_epoch(ListSink(), 2, 1)
    pair.leader.begin_epoch(ListSink(), 2, 2)
    with pytest.raises(StaleEpoch, match="epoch 1 is over"):
        waiting.result(TIMEOUT_S)
    with pytest.raises(StaleEpoch):
        pair.follower.begin_epoch(ListSink(), 2, 1).result(TIMEOUT_S)
    assert pair.follower.begin_epoch(ListSink(), 2, 2).result(TIMEOUT_S).free_blocks == [10]


async def test_a_step_that_breaks_on_one_rank_is_told_before_anything_else(pair: Pair) -> None:
    sink = ListSink()
    pair.engines[1].bugs[1] = RuntimeError("the device is gone")
    pair.leader.begin_epoch(sink, 2, 1)
    pair.leader.submit(sink, plan(1))
    await until(lambda: bool(pair.broken))
    assert pair.broken == ["step 1 broke: RuntimeError: the device is gone"]
    await asyncio.sleep(0)


async def test_a_plan_that_one_rank_alone_cannot_take_breaks_the_group(pair: Pair) -> None:
    """Its grammar was not prepared there. The other ranks run the step, and would wait in it for ever."""
    sinks = [ListSink(), ListSink()]
    pair.engines[1].refusals[1] = RankRefused(grpc.StatusCode.INVALID_ARGUMENT, "grammar 'g' is not prepared")
    pair.leader.begin_epoch(sinks[0], 2, 1)
    pair.follower.begin_epoch(sinks[1], 2, 1).result(TIMEOUT_S)
    pair.leader.submit(sinks[0], plan(1))
    await until(lambda: bool(pair.broken))
    assert pair.broken == ["step 1 broke: RankRefused: grammar 'g' is not prepared"]
