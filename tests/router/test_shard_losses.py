"""Counts of lost shards that come back with clients: those of routers count, and no others."""

from dataclasses import replace
from typing import NoReturn

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from pagewire_router.groups.failures import elsewhere
from pagewire_router.groups.shard_losses import KEEP_S, ShardLosses
from pagewire_router.grpc_front.rpc_status import abort
from pagewire_router.request import Request
from pagewire_router.scheduling.sequence import SequenceGroup
from pagewire_router.scheduling.suspects import count_losses
from scheduling_world import make_request

SHARD = 0x1234_5678_9ABC_DEF0


def request_with(token_ids: list[int], seed: int = 7) -> Request:
    request = make_request(token_ids)
    request.params.seed = seed
    return request


def test_a_router_that_has_met_the_lost_shard_knows_what_another_says_of_a_request() -> None:
    writer, reader, stranger = ShardLosses(), ShardLosses(), ShardLosses()
    request = request_with([1, 2, 3])
    reader.meet([5, SHARD])
    stranger.meet([5])
    token = writer.write(2, request, SHARD)
    again = request_with([1, 2, 3])
    assert (writer.read(token, again), reader.read(token, again), stranger.read(token, again)) == (2, 2, 0)
    assert reader.read(writer.write(1000, request, SHARD), again) == 255


@pytest.mark.parametrize("token", ["", "2", "02", "zz", "02" * 17, "02" * 18, "é", "02" * 100_000])
def test_what_no_router_has_written_counts_for_nothing(token: str) -> None:
    losses = ShardLosses()
    losses.meet([0, SHARD])
    assert losses.read(token, request_with([1, 2, 3])) == 0


def test_a_token_says_nothing_of_another_request_and_nothing_else_if_it_is_changed() -> None:
    losses = ShardLosses()
    token = losses.write(1, request_with([1, 2, 3]), SHARD)
    assert losses.read(token, request_with([1, 2, 4])) == 0
    assert losses.read(token, request_with([1, 2, 3], seed=8)) == 0
    assert losses.read(f"02{token[2:]}", request_with([1, 2, 3])) == 0


def test_shards_that_are_long_gone_are_forgotten() -> None:
    losses = ShardLosses()
    request = request_with([1, 2, 3])
    token = ShardLosses().write(2, request, SHARD)
    losses.meet([SHARD, 5], now_s=100.0)
    losses.meet([5], now_s=100.0 + KEEP_S)
    assert losses.read(token, request) == 2
    losses.meet([5], now_s=101.0 + KEEP_S)
    assert losses.read(token, request) == 0


@pytest.mark.parametrize(("num_new_tokens", "count"), [(0, 4), (1, 1)])
def test_losses_count_until_a_token_comes_that_the_client_does_not_have(num_new_tokens: int, count: int) -> None:
    request = request_with([1, 2, 3])
    request.received, request.num_shard_losses = {0: [4, 5]}, 3
    group = SequenceGroup(request, 64)
    group.sequences[0].token_ids += [6] * num_new_tokens
    assert count_losses(group) == count


def test_the_parts_of_a_request_count_what_its_client_has_of_them() -> None:
    request = replace(request_with([1, 2, 3]), received={0: [4, 5], 1: [6]}, indices=[1, 2])
    assert request.num_received_tokens == 1


async def test_the_error_s_status_has_the_token() -> None:
    sent: list[tuple[str, bytes]] = []

    class Context:
        async def abort(
            self, code: grpc.StatusCode, details: str = "", trailing_metadata: tuple[tuple[str, bytes], ...] = ()
        ) -> NoReturn:
            sent.extend(trailing_metadata)
            raise grpc.aio.AbortError

    with pytest.raises(grpc.aio.AbortError):
        await abort(Context(), elsewhere("the shards are away", "01ab"))
    [(_, data)] = sent
    info = error_details_pb2.ErrorInfo()
    status_pb2.Status.FromString(data).details[0].Unpack(info)
    assert (info.reason, dict(info.metadata)) == ("SHARD_LOST", {"shard_loss_token": "01ab"})
