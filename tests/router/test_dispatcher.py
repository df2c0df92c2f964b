"""What the dispatcher does with requests: where they go, when they are refused or moved. The groups have no shards."""

import time

import pytest
from pagewire.v1 import shard_pb2
from pagewire_common.patience import NOTICE_S
from pagewire_router.config import RouterConfig
from pagewire_router.errors import QueueFull, RequestTooLong, Unavailable
from pagewire_router.groups.dispatcher import Dispatcher
from pagewire_router.groups.group_loop import AVOID_S, GroupLoop
from scheduling_world import NullSink, make_request


class Sink(NullSink):
    def __init__(self):
        self.errors = []

    def on_failed(self, error):
        self.errors.append(error)


def new_request(num_prompt=3, max_tokens=5):
    request = make_request([1] * num_prompt, max_tokens=max_tokens)
    request.sink = Sink()
    return request


class Fleet:
    """A dispatcher and groups that come up and go down as the test says."""

    def __init__(self, **config):
        self.dispatcher = Dispatcher(RouterConfig(shards=(), **config))

    def add_group(self, name, num_blocks=64, *, is_serving=True):
        info = shard_pb2.ShardInfo(
            group_id=name,
            block_size=4,
            num_blocks=[num_blocks],
            max_num_seqs=8,
            max_num_batched_tokens=64,
            max_model_len=1000,
        )
        group = GroupLoop(
            [], info, router_id="r", max_inflight=2, on_change=lambda group: None, on_step=lambda *result: None
        )
        group.is_serving = group.is_expected_back = is_serving
        self.dispatcher.groups.append(group)
        return group

    def go_down(self, group, *, is_expected_back):
        group.is_serving, group.is_expected_back = False, is_expected_back
        self.dispatcher._move_requests()


def test_requests_go_to_groups_that_serve():
    fleet = Fleet()
    fleet.add_group("down", is_serving=False)
    serving = fleet.add_group("up")
    fleet.dispatcher.submit(new_request())
    assert serving.num_waiting == fleet.dispatcher.num_waiting == 1


def test_without_a_group_requests_are_refused():
    with pytest.raises(Unavailable, match="no shard group serves"):
        Fleet().dispatcher.submit(new_request())


def test_requests_wait_for_a_group_that_will_be_back():
    fleet = Fleet()
    group = fleet.add_group("g")
    fleet.go_down(group, is_expected_back=True)
    fleet.dispatcher.submit(new_request())
    assert group.num_waiting == 1


def test_a_group_that_has_just_failed_or_is_stuck_is_avoided():
    fleet = Fleet()
    first, second = fleet.add_group("first"), fleet.add_group("second")
    for group in (first, second):
        group.progress.start(1, time.monotonic())
    first._failed_s = time.monotonic()
    for _ in range(3):
        fleet.dispatcher.submit(new_request())
    assert (first.num_waiting, second.num_waiting) == (0, 3)
    first._failed_s -= AVOID_S
    fleet.dispatcher.submit(new_request())
    assert (first.num_waiting, second.num_waiting) == (1, 3)
    first.progress.start(1, time.monotonic() - 2 * NOTICE_S)
    fleet.dispatcher.submit(new_request())
    assert (first.num_waiting, second.num_waiting) == (1, 4)
    second._failed_s = time.monotonic()
    fleet.dispatcher.submit(new_request())
    assert (first.num_waiting, second.num_waiting) == (2, 4), "there is no better one"


def test_so_many_requests_wait_and_no_more():
    fleet = Fleet(max_queued_requests=2)
    fleet.add_group("g")
    for _ in range(2):
        fleet.dispatcher.submit(new_request())
    with pytest.raises(QueueFull, match="2 requests wait, at most 2 may") as caught:
        fleet.dispatcher.submit(new_request())
    assert caught.value.retry_after_s > 0


def test_prompts_of_so_many_tokens_wait_but_a_single_one_may_be_longer():
    fleet = Fleet(max_queued_tokens=10)
    fleet.add_group("g")
    fleet.dispatcher.submit(new_request(num_prompt=20))
    with pytest.raises(QueueFull, match="20 tokens wait, at most 10 may"):
        fleet.dispatcher.submit(new_request())


def test_tokens_that_clients_resume_with_count_as_those_of_prompts_do():
    fleet = Fleet(max_queued_tokens=40)
    group = fleet.add_group("g")
    requests = [new_request(max_tokens=30) for _ in range(3)]
    for request in requests:
        request.received = {0: [1] * 20}
    fleet.dispatcher.submit(requests[0])
    with pytest.raises(QueueFull, match="23 tokens wait, at most 40 may"):
        fleet.dispatcher.submit(requests[1])
    fleet.dispatcher.submit(new_request(num_prompt=17))
    fleet.dispatcher.abort(requests[0])
    assert group.scheduler.num_waiting_tokens == 17
    fleet.dispatcher.submit(requests[2])


def test_what_no_group_could_run_is_refused():
    fleet = Fleet()
    fleet.add_group("g", num_blocks=2)
    with pytest.raises(RequestTooLong):
        fleet.dispatcher.submit(new_request(num_prompt=20))


def test_requests_move_from_a_group_that_goes_down_to_one_that_serves():
    fleet = Fleet()
    first, second = fleet.add_group("first"), fleet.add_group("second", is_serving=False)
    requests = [new_request() for _ in range(3)]
    for request in requests:
        fleet.dispatcher.submit(request)
    second.is_serving = True
    fleet.go_down(first, is_expected_back=True)
    assert (first.num_waiting, second.num_waiting) == (0, 3)
    assert [request.sink.errors for request in requests] == [[], [], []]


def test_a_request_that_does_not_fit_where_it_would_move_fails():
    fleet = Fleet()
    first, _ = fleet.add_group("first"), fleet.add_group("small", num_blocks=2)
    request = new_request(num_prompt=40)
    first.submit(request)
    fleet.go_down(first, is_expected_back=True)
    assert [type(error) for error in request.sink.errors] == [RequestTooLong]


def test_requests_fail_when_their_group_is_not_expected_back_and_no_other_serves():
    fleet = Fleet()
    group = fleet.add_group("g")
    request = new_request()
    fleet.dispatcher.submit(request)
    fleet.go_down(group, is_expected_back=False)
    assert [type(error) for error in request.sink.errors] == [Unavailable]
    assert not group.requests


def test_an_aborted_request_leaves_the_queue_wherever_it_is():
    fleet = Fleet()
    fleet.add_group("a"), fleet.add_group("b")
    requests = [new_request() for _ in range(4)]
    for request in requests:
        fleet.dispatcher.submit(request)
    for request in requests:
        fleet.dispatcher.abort(request)
    assert fleet.dispatcher.num_waiting == 0


async def test_a_router_that_drains_takes_no_requests():
    fleet = Fleet()
    fleet.add_group("g")
    await fleet.dispatcher.drain(1.0)
    with pytest.raises(Unavailable, match="drains"):
        fleet.dispatcher.submit(new_request())
    assert not fleet.dispatcher.is_ready


def indices_on(group):
    """Sequence indices of each request that waits on the group, in order of the queue."""
    return [[sequence.index for sequence in waiting.sequences] for waiting in group.scheduler.waiting]


def wide_request(n, max_tokens=5):
    request = make_request([1] * 3, n=n, max_tokens=max_tokens)
    request.sink = Sink()
    return request


def test_a_request_of_many_sequences_runs_in_parts():
    fleet = Fleet()
    group = fleet.add_group("g")
    fleet.dispatcher.submit(wide_request(20))
    # A group has 8 slots, of which a part takes a quarter.
    assert indices_on(group) == [[i, i + 1] for i in range(0, 20, 2)]
    fleet.dispatcher.submit(wide_request(2))
    assert indices_on(group)[10:] == [[0, 1]]


def test_parts_are_as_small_as_the_pool_demands():
    fleet = Fleet()
    # Each sequence takes 6 blocks.
    group = fleet.add_group("g", num_blocks=11)
    fleet.dispatcher.submit(wide_request(3, max_tokens=20))
    assert indices_on(group) == [[0], [1], [2]]


def test_a_request_in_parts_is_aborted_whole():
    fleet = Fleet()
    fleet.add_group("a"), fleet.add_group("b")
    request = wide_request(40)
    fleet.dispatcher.submit(request)
    assert fleet.dispatcher.num_waiting == 20
    fleet.dispatcher.abort(request)
    assert fleet.dispatcher.num_waiting == 0
    assert request.other_parts[0].sink is request.sink


def test_a_request_in_parts_fails_once_and_whole():
    fleet = Fleet()
    first, second = fleet.add_group("a"), fleet.add_group("b")
    request = wide_request(40)
    sink = request.sink
    fleet.dispatcher.submit(request)
    fleet.dispatcher.submit(other := new_request())
    first.fail_all(Unavailable("gone"))
    assert [str(error) for error in sink.errors] == ["gone"]
    second.fail_all(Unavailable("gone too"))
    assert len(sink.errors) == 1
    assert fleet.dispatcher.num_waiting == 0
    assert len(other.sink.errors) == 1
    # What was under way when it failed is dropped, and its sequences end.
    assert request.sink.on_tokens(0, [1], None)
    request.sink.on_finished(0, 0, None, 0)


def test_what_belongs_to_the_prompt_is_asked_of_the_first_part_alone():
    fleet = Fleet()
    fleet.add_group("g")
    request = make_request([1] * 3, n=5, max_tokens=5, prompt_logprobs=1)
    fleet.dispatcher.submit(request)
    parts = [request, *request.other_parts]
    assert [part.params.HasField("prompt_logprobs") for part in parts] == [True, False, False]


def test_parts_that_fit_no_group_are_refused_together():
    fleet = Fleet()
    fleet.add_group("g", num_blocks=2)
    with pytest.raises(RequestTooLong):
        fleet.dispatcher.submit(wide_request(20, max_tokens=20))
    assert fleet.dispatcher.num_waiting == 0
