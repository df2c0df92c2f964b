"""Clients take turns in the waiting queue: none delays another beyond its share, whatever it asks for."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from pagewire_router.scheduling import fair_shares, waiting_queue
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_router.scheduling.scheduler import Scheduler
from pagewire_router.scheduling.sequence import SequenceGroup
from pagewire_router.scheduling.waiting_queue import LEVEL_S, MAX_CLIENTS, OTHERS, WaitingQueue
from scheduling_world import World, expected_output, make_request, output

PROMPT = [1, 2, 3, 4]


class Line:
    """A queue from which requests are admitted one after the other."""

    def __init__(self) -> None:
        self.queue = WaitingQueue()
        self.given: dict[str, float] = {}
        self.now_s = 0.0

    def ask(self, client: str, num_tokens: int = 10, **options: object) -> SequenceGroup:
        self.now_s += 0.001
        options = {"arrival_s": self.now_s, "client": client, "max_tokens": num_tokens, **options}
        group = SequenceGroup(make_request(PROMPT, **options), 100_000)  # type: ignore[arg-type]
        group.expected_tokens = float(num_tokens)
        self.queue.push(group)
        return group

    def admit(self) -> SequenceGroup:
        group = self.queue.pop()
        assert group is not None
        self.queue.on_admitted(group)
        request = group.request
        cost = len(PROMPT) + group.expected_tokens
        self.given[request.client] = self.given.get(request.client, 0.0) + cost / request.weight
        return group

    def order(self, num: int) -> str:
        """The clients of the next requests."""
        return "".join(self.admit().request.client for _ in range(num))


def test_a_newcomer_does_not_wait_for_a_flood():
    line = Line()
    for _ in range(100):
        line.ask("a")
    assert line.order(20) == "a" * 20
    line.ask("b")
    assert "b" in line.order(2)


def test_weights_divide_the_device():
    line = Line()
    for _ in range(80):
        line.ask("a")
        line.ask("b", weight=3.0)
    order = line.order(80)
    assert order.count("b") == pytest.approx(60, abs=2)


def test_a_client_that_was_away_is_owed_nothing():
    line = Line()
    line.ask("b")
    line.admit()
    for _ in range(200):
        line.ask("a")
    line.order(100)
    for _ in range(50):
        line.ask("b")
    assert line.order(20).count("b") == pytest.approx(10, abs=1)


def test_a_client_that_comes_back_has_not_got_rid_of_what_it_was_given():
    line = Line()
    for _ in range(20):
        line.ask("b")
    line.ask("a", 1000)
    while "a" not in line.given:
        line.admit()
    line.ask("a", 1000)
    assert line.order(15) == "b" * 15


def test_what_a_request_took_is_settled_when_it_ends():
    line = Line()
    for _ in range(10):
        line.ask("a")
        line.ask("b")
    first, second = line.admit(), line.admit()
    for group, num_tokens in ((first, 10), (second, 50)):
        group.sequences[0].token_ids = PROMPT + [5] * num_tokens
        line.queue.on_ended(group)
    assert line.order(3) == first.request.client * 3


def test_more_urgent_requests_go_first_for_a_while_only():
    line = Line()
    old = line.ask("a", priority=1, arrival_s=0.0)
    assert line.ask("b", arrival_s=LEVEL_S - 1.0) is line.admit()
    line.ask("b", arrival_s=LEVEL_S + 1.0)
    assert line.admit() is old, "b was given more"


def test_a_long_line_gets_no_more_urgent_than_others_by_waiting():
    line = Line()
    for _ in range(10):
        line.ask("a", arrival_s=0.0)
    line.order(2)
    line.ask("b", arrival_s=10 * LEVEL_S)
    assert "b" in line.order(2)


def test_requests_that_had_their_turn_go_on_first():
    line = Line()
    for _ in range(4):
        line.ask("a", 1000)
    begun = line.admit()
    for _ in range(4):
        line.ask("b")
    line.queue.push(begun)
    assert line.admit() is begun
    passed = line.ask("c", 10, arrival_s=100.0)
    passed.num_passes = 1
    assert line.admit() is passed


def test_a_request_that_is_put_back_changes_no_turn():
    line = Line()
    for client in "ab":
        line.ask(client)
    for _ in range(20):
        popped = [line.queue.pop(), line.queue.pop()]
        assert [group.request.client for group in popped] == ["a", "b"]
        for group in popped:
            line.queue.push(group)


def test_many_clients_are_bounded_and_the_others_share_one_turn(monkeypatch):
    monkeypatch.setattr(fair_shares, "MAX_REMEMBERED", 300)
    line = Line()
    for number in range(MAX_CLIENTS + 50):
        line.ask(str(number))
    assert len(line.queue._lines) == MAX_CLIENTS + 1
    assert len(line.queue._lines[OTHERS]) == 50
    while line.queue:
        line.admit()
    for number in range(1000):
        line.ask(f"later {number}")
        line.admit()
    assert len(line.queue.shares._counters) <= 301


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_client_that_waits_is_given_less_than_its_share(data: st.DataObject) -> None:
    """Two clients that both wait all the time are never further apart than their longest requests."""
    line = Line()
    clients = "abcd"[: data.draw(st.integers(2, 4))]
    weights = {client: data.draw(st.sampled_from([0.5, 1.0, 4.0])) for client in clients}
    for client in clients:
        for _ in range(data.draw(st.integers(10, 30))):
            line.ask(client, data.draw(st.integers(1, 60)), weight=weights[client])
    bound = max((len(PROMPT) + 60) / weight for weight in weights.values())
    while set(line.queue._lines) == set(clients):
        line.admit()
        given = [line.given.get(client, 0.0) for client in clients]
        assert max(given) - min(given) <= bound


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_no_flood_delays_another_client_beyond_a_turn_of_each(data: st.DataObject) -> None:
    line = Line()
    for _ in range(data.draw(st.integers(1, 80))):
        line.ask(data.draw(st.sampled_from("abc")), data.draw(st.integers(1, 60)))
        if data.draw(st.booleans()):
            line.admit()
    newcomer = line.ask("z")
    ahead = dict.fromkeys("abc", 0.0)
    while (group := line.admit()) is not newcomer:
        ahead[group.request.client] += len(PROMPT) + group.expected_tokens
        line.ask("a", 60)
    assert all(tokens <= 2 * (len(PROMPT) + 60) for tokens in ahead.values()), "what floods asked for later counts not"


def test_one_client_alone_is_served_as_ever():
    line = Line()
    deadlines = [30.0, 10.0, None, 20.0]
    groups = [line.ask("a", arrival_s=1.0, deadline_s=deadline) for deadline in deadlines]
    assert [groups.index(line.admit()) for _ in groups] == [1, 3, 0, 2]


def test_a_flood_of_others_is_no_reason_to_refuse():
    line = Line()
    for _ in range(1000):
        line.ask("a")
    line.order(10)
    newcomer = make_request(PROMPT, client="b", arrival_s=line.now_s)
    assert line.queue.tokens_ahead(newcomer) <= 20
    same = make_request(PROMPT, client="a", arrival_s=line.now_s)
    assert line.queue.tokens_ahead(same) == 9900


LIMITS = GroupLimits(num_blocks=40, block_size=4, max_num_seqs=4, max_num_batched_tokens=32, max_model_len=64)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_floods_preemption_and_lost_shards_lose_nothing_and_starve_nobody(data: st.DataObject) -> None:
    world = World(LIMITS, window=2, eos_share=0.0)
    groups: list[SequenceGroup] = []

    def ask(client: str, num_tokens: int) -> SequenceGroup:
        prompt = [1 + len(groups) % 5, 1 + len(groups) // 5 % 5, 3]
        request = make_request(prompt, client=client, max_tokens=num_tokens, arrival_s=world.now, eos=False)
        groups.append(world.submit(request))
        return groups[-1]

    for num_tokens in data.draw(st.lists(st.integers(1, 30), min_size=20, max_size=40)):
        ask("flood", num_tokens)
    for _ in range(data.draw(st.integers(0, 10))):
        world.step()
    begun = [group for group in groups if group.request.scheduled_s is not None]
    lone = ask("lone", 5)
    if data.draw(st.booleans()):
        world.new_epoch()
    for _ in range(1000):
        if lone.request.scheduled_s is not None:
            break
        world.step()
    later = [group for group in groups[:-1] if group not in begun and group.request.scheduled_s is not None]
    assert len(later) <= 2 * LIMITS.max_num_seqs, "it has waited for a turn, not for the flood"
    world.run()
    for group in groups:
        assert output(group) == expected_output(group.request, 0, LIMITS.max_model_len, 0.0)
    world.check_whole()


def test_clients_cost_nothing_while_there_is_one(monkeypatch):
    def fail(*_args: object) -> None:
        raise AssertionError("turns were compared")

    monkeypatch.setattr(waiting_queue.WaitingQueue, "_next_of", fail)
    scheduler = Scheduler(LIMITS)
    scheduler.reset(LIMITS.num_blocks, 1)
    for _ in range(10):
        scheduler.add(make_request(PROMPT, client="a", max_tokens=2))
    assert scheduler.schedule(0.0) is not None
    assert len(scheduler.running) == LIMITS.max_num_seqs
