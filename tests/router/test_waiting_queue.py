"""The order in which waiting requests are admitted. What the queue sums up is tested in test_forecast.py."""

import pytest
from pagewire_router.scheduling import residents
from pagewire_router.scheduling.block_ledger import GroupLimits
from pagewire_router.scheduling.deadlines import Deadlines
from pagewire_router.scheduling.scheduler import Scheduler
from pagewire_router.scheduling.sequence import MANY_LOGPROBS, SequenceGroup
from pagewire_router.scheduling.sequence_state import SequenceState
from pagewire_router.scheduling.waiting_queue import LEVEL_S, PATIENCE_S, WaitingQueue
from scheduling_world import make_request


def new_group(**options):
    return SequenceGroup(make_request([1, 2, 3], **options), 64)


def order_of(*groups):
    queue = WaitingQueue()
    for group in groups:
        queue.push(group)
    return list(iter(queue.pop, None))


def test_the_earlier_arrival_goes_first():
    late, early = new_group(arrival_s=2.0), new_group(arrival_s=1.0)
    assert order_of(late, early) == [early, late]


def test_a_nearer_deadline_goes_before_an_earlier_arrival():
    early, hurried = new_group(arrival_s=1.0), new_group(arrival_s=9.0, deadline_s=20.0)
    assert order_of(early, hurried) == [hurried, early]


def test_a_lower_priority_number_goes_before_a_nearer_deadline():
    hurried, urgent = new_group(arrival_s=1.0, deadline_s=2.0), new_group(arrival_s=50.0, priority=-1)
    assert order_of(hurried, urgent) == [urgent, hurried]


@pytest.mark.parametrize(("later_s", "overtakes"), [(LEVEL_S - 1.0, True), (LEVEL_S + 1.0, False)])
def test_newcomers_of_a_more_urgent_priority_overtake_for_a_while_only(later_s, overtakes):
    waiting, newcomer = new_group(arrival_s=0.0, priority=1), new_group(arrival_s=later_s)
    assert (order_of(waiting, newcomer)[0] is newcomer) == overtakes


def test_newcomers_with_deadlines_overtake_for_a_while_only():
    patient, hurried = new_group(arrival_s=0.0), new_group(arrival_s=PATIENCE_S, deadline_s=PATIENCE_S + 1.0)
    assert order_of(patient, hurried) == [patient, hurried]


def test_one_that_is_put_back_keeps_its_place():
    first, second = new_group(arrival_s=1.0), new_group(arrival_s=2.0)
    queue = WaitingQueue()
    queue.push(first)
    queue.push(second)
    assert queue.pop() is first
    queue.push(first)
    assert queue.pop() is first


def test_one_that_is_removed_is_not_popped_and_the_heap_does_not_keep_it():
    queue, groups = WaitingQueue(), [new_group(arrival_s=float(i)) for i in range(500)]
    for group in groups:
        queue.push(group)
    for group in groups[:499]:
        queue.remove(group)
    queue.push(new_group(arrival_s=1000.0))
    assert len(queue) == 2
    assert len(queue._lines[""]._few) < 100
    assert queue.pop() is groups[499]


def test_deadlines_come_due_in_order_and_those_that_have_ended_do_not():
    deadlines, groups = Deadlines(), [new_group() for _ in range(4)]
    for at_s, group in zip([3.0, 1.0, 2.0, 9.0], groups, strict=True):
        deadlines.push(at_s, group, num_alive=4)
    groups[1].sequences[0].state = SequenceState.FINISHED
    assert list(deadlines.pop_due(5.0)) == [groups[2], groups[0]]
    assert list(deadlines.pop_due(5.0)) == []


def test_requests_for_many_log_probabilities_may_be_left_in_the_queue():
    queue = WaitingQueue()
    first, last = (new_group(arrival_s=at_s, logprobs=MANY_LOGPROBS + 1) for at_s in (1.0, 3.0))
    few = new_group(arrival_s=2.0)
    for group in (last, few, first):
        queue.push(group)
    assert queue.pop(only_few_logprobs=True) is few
    assert queue.pop(only_few_logprobs=True) is None
    assert len(queue) == 2
    queue.push(few)
    assert list(iter(queue.pop, None)) == [first, few, last]


def test_any_number_of_requests_that_wait_for_room_in_results_may_be_overtaken(monkeypatch):
    limits = GroupLimits(num_blocks=64, block_size=4, max_num_seqs=32, max_num_batched_tokens=64, max_model_len=64)
    scheduler = Scheduler(limits)
    scheduler.reset(64)
    monkeypatch.setattr(residents, "MAX_STEP_LOGPROBS", MANY_LOGPROBS + 1)
    wide = [scheduler.add(make_request([1, 2], logprobs=MANY_LOGPROBS + 1, max_tokens=5)) for _ in range(20)]
    few = scheduler.add(make_request([1, 2], max_tokens=5, arrival_s=1.0))
    scheduler.schedule(0.0)
    assert few.is_running
    assert [group.is_running for group in wide] == [True] + [False] * 19
    assert len(scheduler.waiting) == 19
