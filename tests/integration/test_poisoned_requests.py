"""Requests that make steps or the router's output fail, among others: they end with an error, all others are served."""

import asyncio
from pathlib import Path

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_shards import INFO, live_shard
from pagewire.errors import from_rpc_error
from pagewire.v1 import inference_pb2, inference_pb2_grpc
from pagewire_router.config import RouterConfig
from pagewire_router.groups.dispatcher import Dispatcher
from pagewire_router.output import sequence_output
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_router.scheduling.sequence import SequenceGroup
from pagewire_router.scheduling.suspects import MAX_DEATHS, MAX_LONE_DEATHS, blame, note_death
from pagewire_router.server import RouterServer
from scheduling_world import Rank, World, expected_output, make_request, output

LIMITS = GroupLimits(num_blocks=80, block_size=4, max_num_seqs=16, max_num_batched_tokens=32, max_model_len=48)


class FailingWorld(World):
    """Does with failed steps what the group loop does."""

    def __init__(self, window: int, limits: GroupLimits = LIMITS) -> None:
        super().__init__(limits, window, eos_share=0.0)
        self.ranks = [Rank(limits, 0.0, window, lazy=False, vocab_size=200)]
        self.num_failures = 0
        self.ended: list[SequenceGroup] = []
        self.companies: list[int] = []
        """How many requests each failed step may have had."""

    def step(self) -> bool:
        try:
            return super().step()
        except RuntimeError:
            self.fail()
            return True

    def fail(self) -> None:
        self.num_failures += 1
        groups = self.scheduler.groups_in_flight()
        self.companies.append(len(groups))
        culprit = blame(groups or self.scheduler.running)
        if culprit is not None:
            self.scheduler.end(culprit)
            self.ended.append(culprit)
        self.restart()

    def restart(self) -> None:
        rank = self.ranks[0]
        rank.pending.clear()
        rank.results.clear()
        free = rank.engine.begin_epoch(self.window)
        rank.engine.reset_cache()
        self.scheduler.reset(free[0])


def check_innocents(world: FailingWorld, groups: list[SequenceGroup]) -> None:
    for group in groups:
        for sequence in group.sequences:
            assert output(group, sequence.index) == expected_output(group.request, sequence.index, 48, 0.0)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 4))
def test_poisoned_requests_end_and_all_others_get_their_tokens(data: st.DataObject, window: int) -> None:
    world = FailingWorld(window)
    kinds = data.draw(st.lists(st.sampled_from(["innocent", "poison"]), min_size=1, max_size=12))
    groups: dict[str, list[SequenceGroup]] = {"innocent": [], "poison": []}
    for i, kind in enumerate(kinds):
        max_tokens = data.draw(st.integers(1, 12))
        length = data.draw(st.integers(1, 20))
        prompt = [100 + i if kind == "poison" else 1 + i % 5] + [1 + k % 3 for k in range(length)]
        if kind == "poison":
            world.ranks[0].runner.poisons[100 + i] = data.draw(st.integers(1, len(prompt) + max_tokens - 1))
        n = data.draw(st.sampled_from([1, 1, 2]))
        request = make_request(prompt, max_tokens=max_tokens, n=n, seed=i, arrival_s=float(i), eos=False)
        groups[kind].append(world.submit(request))
        for _ in range(data.draw(st.integers(0, 3))):
            world.step()
    world.run()
    check_innocents(world, groups["innocent"])
    assert set(world.ended) == set(groups["poison"])
    assert world.num_failures <= 2 * len(groups["poison"])
    assert not world.scheduler.suspects
    world.check_whole()


def test_a_request_that_fails_in_company_alone_still_ends_well() -> None:
    """A defect of batches, not of requests: what fails together and never alone is run one by one."""
    world = FailingWorld(window=2)
    runner = world.ranks[0].runner

    def break_batches(batch) -> None:
        if len(batch.slots) > 1:
            raise RuntimeError("two rows")

    runner._break_if_poisoned = break_batches
    groups = [world.submit(make_request([1 + i, 2], max_tokens=6, seed=i, eos=False)) for i in range(4)]
    world.run()
    check_innocents(world, groups)
    assert world.ended == []
    assert world.num_failures <= 8


def test_others_go_on_while_a_suspect_is_on_trial() -> None:
    world = FailingWorld(window=2)
    world.ranks[0].runner.poisons[100] = 3
    poison = world.submit(make_request([100, 1, 2], max_tokens=40, eos=False))
    while not world.num_failures:
        world.step()
    newcomer = world.submit(make_request([1, 2], max_tokens=3, arrival_s=9.0, eos=False))
    world.run()
    assert world.ended == [poison]
    assert world.num_failures == 2
    check_innocents(world, [newcomer])


def test_a_suspect_waits_for_room_and_nobody_overtakes_it() -> None:
    limits = GroupLimits(num_blocks=12, block_size=4, max_num_seqs=16, max_num_batched_tokens=32, max_model_len=48)
    world = FailingWorld(2, limits)
    long = world.submit(make_request([1] * 20, max_tokens=8, eos=False))
    world.step()
    big = world.submit(make_request([2] * 30, max_tokens=8, arrival_s=1.0, eos=False))
    assert blame([big]) is None
    world.restart()
    groups = [long, big]
    for i in range(30):
        groups.append(world.submit(make_request([3, 1 + i % 5], max_tokens=6, arrival_s=2.0 + i, eos=False)))
        world.step()
    assert big.is_finished
    world.run()
    for group in groups:
        assert output(group) == expected_output(group.request, 0, 48, 0.0)


def test_shards_that_die_over_a_request_make_it_a_suspect_and_end_it_alone() -> None:
    world = FailingWorld(window=2)
    killer, innocent = (world.submit(make_request([i, 2, 3], max_tokens=9, seed=i, eos=False)) for i in (1, 2))
    verdicts = []
    for _ in range(MAX_DEATHS):
        world.scheduler.schedule(1.0)
        lost = world.scheduler.groups_in_flight()
        assert set(lost) == {killer, innocent}
        verdicts += [note_death(group, alone=False) for group in lost]
        world.restart()
    assert not any(verdicts)
    for _ in range(MAX_LONE_DEATHS):
        plan = world.scheduler.schedule(1.0)
        while plan is not None and killer not in world.scheduler.groups_in_flight():
            world.restart()
            plan = world.scheduler.schedule(1.0)
        assert world.scheduler.groups_in_flight() == [killer]
        verdicts.append(note_death(killer, alone=True))
        world.restart()
    assert verdicts[-2:] == [False, True]
    world.scheduler.end(killer)
    world.run()
    check_innocents(world, [innocent])


def test_deaths_are_forgotten_with_the_next_token() -> None:
    world = FailingWorld(window=1)
    group = world.submit(make_request([1, 2, 3], max_tokens=30, eos=False))
    for _ in range(20):
        world.step()
        assert not note_death(group, alone=False)
        assert group.suspicion is None
        world.restart()


FAILING_MIN_TOKENS = 77
"""Tells the request whose output fails from the others."""


@pytest.mark.parametrize(
    ("method", "reason"), [("append", "REQUEST_FAILED"), ("finish", "REQUEST_FAILED"), ("take_delta", "INTERNAL")]
)
async def test_a_request_whose_output_cannot_be_made_ends_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str, reason: str
) -> None:
    make = getattr(sequence_output.SequenceOutput, method)

    def fail(self: sequence_output.SequenceOutput, *arguments: object) -> object:
        if self._min_tokens == FAILING_MIN_TOKENS and self.num_tokens > 5:
            raise ZeroDivisionError("a bug")
        return make(self, *arguments)

    monkeypatch.setattr(sequence_output.SequenceOutput, method, fail)
    async with live_shard(tmp_path) as shard:
        engine = Dispatcher(RouterConfig(shards=(shard.address,)))
        server = RouterServer(RouterConfig(shards=(), listen="127.0.0.1:0"), engine)
        address = await server.start()
        await server.open()
        async with grpc.aio.insecure_channel(address) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)

            async def ask(number: int, min_tokens: int = 0) -> list[int]:
                params = inference_pb2.SamplingParams(
                    max_tokens=100, min_tokens=min_tokens, ignore_eos=True, seed=number
                )
                prompt = inference_pb2.TokenIds(ids=[1 + number, 2, 3])
                message = inference_pb2.GenerateRequest(token_ids=prompt, sampling_params=params)
                return [token async for response in stub.Generate(message) for token in response.delta.token_ids]

            answers = await asyncio.gather(
                *(ask(number, FAILING_MIN_TOKENS if number == 2 else 0) for number in range(5)),
                return_exceptions=True,
            )
            failed = answers.pop(2)
            assert [len(answer) for answer in answers if isinstance(answer, list)] == [100] * 4
            assert isinstance(failed, grpc.aio.AioRpcError)
            assert failed.code() == grpc.StatusCode.INTERNAL
            assert from_rpc_error(failed, address).reason == reason
            assert "a bug" not in str(failed.details())
            assert len(await ask(2)) == 100
        assert engine.groups[0].num_failovers == 0
        assert "a bug" in caplog.text
        await server.stop()
        async with asyncio.timeout(20):
            while shard.steps.stats.free_blocks != list(INFO.num_blocks):
                await asyncio.sleep(0.01)
