"""The connections between the ranks of a group: how they meet, what is passed on, and ranks that are lost."""

import contextlib
import logging
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cluster import eventually, free_port
from google.protobuf.message import DecodeError
from pagewire_shard.errors import GroupFailed
from pagewire_shard.parallel import channel
from pagewire_shard.parallel.channel import GroupChannel, meet
from pagewire_shard.parallel.peer import Peer
from pagewire_shard.parallel.ranks import Ranks

WATCH_S = 0.3


@dataclass
class Told:
    """What one rank has heard."""

    entries: list[bytes] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


@pytest.fixture
def rendezvous(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    is_tcp = getattr(request, "param", "unix") == "tcp"
    return f"127.0.0.1:{free_port()}" if is_tcp else f"unix:{tmp_path}/group.sock"


@pytest.fixture
def all_meet(rendezvous: str) -> Iterator[Callable[..., list[tuple[GroupChannel, Told]]]]:
    """Lets a number of ranks meet and start."""
    started: list[GroupChannel] = []

    def start(size: int, watch_s: float = WATCH_S) -> list[tuple[GroupChannel, Told]]:
        with ThreadPoolExecutor(size) as pool:
            ranks = pool.map(lambda rank: meet(rendezvous, Ranks(rank, size), "g", {"port": 7}, 10.0), range(size))
        told = [(each, Told()) for each in ranks]
        for each, heard in told:
            each.start(heard.entries.append, heard.lost.append, watch_s)
            started.append(each)
        return told

    yield start
    for each in started:
        each.leave()
        each.close()


@pytest.mark.parametrize("rendezvous", ["unix", "tcp"], indirect=True)
def test_ranks_meet_and_hear_what_rank_0_passes_on_in_order(all_meet: Callable) -> None:
    ranks = all_meet(3)
    assert [each.greeting for each, _ in ranks] == [{"port": 7}] * 3
    entries = [bytes([i]) * i * 1000 for i in range(20)]
    for entry in entries:
        ranks[0][0].pass_on(entry)
    for _, heard in ranks[1:]:
        eventually(lambda heard=heard: heard.entries == entries, "all entries have come")
    for each, _ in ranks:
        each.say_ready()
    threading.Event().wait(3 * WATCH_S)
    assert not any(heard.lost for _, heard in ranks), "ranks that say that they are alive are not lost"


def test_the_end_of_a_rank_is_noticed_at_once(all_meet: Callable) -> None:
    ranks = all_meet(3)
    ranks[1][0].close()
    eventually(lambda: bool(ranks[0][1].lost), "rank 0 has noticed", timeout_s=5.0)
    assert ranks[0][1].lost[0].startswith("rank 1 has ended")
    assert not ranks[2][1].lost, "that is rank 0's to tell, by its own end"


def test_a_silent_rank_is_lost_once_it_has_loaded(all_meet: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = all_meet(2)
    monkeypatch.setattr(ranks[1][0], "_beat_once", lambda: None)
    threading.Event().wait(3 * WATCH_S)
    assert not ranks[0][1].lost, "a rank that loads may be silent"
    for each, _ in ranks:
        each.say_ready()
    eventually(lambda: bool(ranks[0][1].lost), "rank 0 has noticed", timeout_s=10 * WATCH_S)
    assert ranks[0][1].lost[0].startswith("rank 1 has been silent for")
    assert not ranks[1][1].lost


@pytest.mark.parametrize("error", [struct.error("short"), DecodeError("bad"), AssertionError("odd")], ids=repr)
def test_an_entry_that_a_rank_cannot_take_loses_the_peer(all_meet: Callable, error: Exception) -> None:
    """The thread that listens ends: a group that went on would wait in a collective for plans that nobody reads."""

    def refuse(entry: bytes) -> None:
        raise error

    ranks = all_meet(2)
    ranks[1][0]._on_entry = refuse
    ranks[0][0].pass_on(b"entry")
    eventually(lambda: bool(ranks[1][1].lost), "rank 1 has told", timeout_s=5.0)
    assert ranks[1][1].lost == [f"rank 0 has sent what rank 1 cannot take ({error!r})"]


def test_entries_wait_for_a_slow_rank_while_rank_0_goes_on(all_meet: Callable) -> None:
    """Rank 0 passes entries on where it also renews its lease and sends results."""
    ranks = all_meet(3, 2.0)
    may_take, taken = threading.Event(), ranks[1][1].entries

    def take(entry: bytes) -> None:
        assert may_take.wait(60.0)
        taken.append(entry)

    ranks[1][0]._on_entry = take
    entries = [bytes([i]) * 300_000 for i in range(8)]
    for entry in entries:
        ranks[0][0].pass_on(entry)
    may_take.set()
    for _, heard in ranks[1:]:
        eventually(lambda heard=heard: heard.entries == entries, "all entries have come", timeout_s=10.0)
    assert not any(heard.lost for _, heard in ranks)


def test_a_rank_that_takes_no_beats_is_lost() -> None:
    """What was sent may have ended within a frame: nothing that follows it could be read."""
    own, other = socket.socketpair()
    with own, other:
        own.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                own.send(bytes(4096))
        own.setblocking(True)
        heard = Told()
        rank = GroupChannel(Ranks(0, 2), [Peer(1, own)], {}, "")
        rank.start(heard.entries.append, heard.lost.append, WATCH_S)
        eventually(lambda: bool(heard.lost), "rank 0 has noticed", timeout_s=5.0)
        assert heard.lost[0].startswith("rank 1 cannot be reached")
        rank.leave()


def test_a_rank_that_leaves_hears_of_no_other(all_meet: Callable) -> None:
    ranks = all_meet(2)
    ranks[0][0].leave()
    ranks[1][0].leave()
    ranks[1][0].close()
    threading.Event().wait(2 * WATCH_S)
    assert not ranks[0][1].lost


def test_a_rank_that_does_not_come_is_named(rendezvous: str) -> None:
    with pytest.raises(GroupFailed, match=r"rank 0 of group 'g' cannot meet the others .*rank 1, 2 did not come"):
        meet(rendezvous, Ranks(0, 3), "g", {}, 0.2)
    with pytest.raises(GroupFailed, match="rank 1 of group 'g' cannot meet the others"):
        meet(rendezvous, Ranks(1, 3), "g", {}, 0.2)


def test_ranks_of_another_group_are_refused(rendezvous: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), ThreadPoolExecutor(2) as pool:
        stranger = pool.submit(meet, rendezvous, Ranks(1, 2), "other", {}, 0.5)
        own = pool.submit(meet, rendezvous, Ranks(0, 2), "g", {}, 1.0)
        for future in (stranger, own):
            with pytest.raises(GroupFailed):
                future.result()
    assert "is none of 2 ranks of group 'g'" in caplog.text


@pytest.mark.parametrize("rendezvous", ["tcp"], indirect=True)
def test_a_frame_that_is_no_rank_s_ends_the_connection_alone(rendezvous: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(meet, rendezvous, Ranks(0, 2), "g", {"port": 1}, 10.0)
        with channel._connect(rendezvous, 1e9) as scanner:
            scanner.sendall(b"GET / HTTP/1.1\r\n\r\n")
            second = pool.submit(meet, rendezvous, Ranks(1, 2), "g", {}, 10.0)
            assert second.result().greeting == {"port": 1}
        for each in (first.result(), second.result()):
            each.close()
