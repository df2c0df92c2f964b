"""The connections of a group beside its collectives: from rank 0 to each other rank, by TCP or a Unix socket.

Rank 0 passes entries on, such as the plans it runs, and every rank says twice in each watch_s that it is alive. A rank
that ends, or is silent for watch_s, is lost to the others: a collective would wait for it for ever. They are told so on
a thread of this module, whatever else the process does.
"""

import contextlib
import json
import logging
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pagewire_shard.errors import GroupFailed
from pagewire_shard.parallel.peer import BEAT, ENTRY, FAREWELL, GREETING, READY, TOKENS, Peer, frame, receive
from pagewire_shard.parallel.ranks import Ranks

logger = logging.getLogger(__name__)

CONNECT_RETRY_S = 0.05
FAREWELL_S = 0.5
"""Longest wait for ranks that read slowly, so that they are told that this one leaves."""


def _unexpected(message: bytes) -> None:
    raise AssertionError("only the stages of a pipeline before the last one are sent tokens")


class GroupChannel:
    """One rank's end: rank 0 has a connection to each other rank, those one to rank 0."""

    def __init__(self, ranks: Ranks, peers: list[Peer], greeting: dict[str, Any], address: str) -> None:
        self.ranks = ranks
        self.greeting = greeting
        """What rank 0 told all others when they met."""
        self.address = address
        """Of this rank's interface that reaches rank 0."""
        self._peers = peers
        self._leaving = False

    def start(
        self,
        on_entry: Callable[[bytes], None],
        on_lost: Callable[[str], None],
        watch_s: float,
        on_tokens: Callable[[bytes], None] = _unexpected,
    ) -> None:
        """Begins to listen and to say that this rank is alive.

        Args:
            on_entry: Takes what rank 0 passes on, in order.
            on_lost: Told once which rank is lost and why.
            watch_s: Longest silence of a rank that has said that it is ready.
            on_tokens: Takes what rank 0's steps have yielded, in order.
        """
        self._on_entry, self._on_lost, self._watch_s = on_entry, on_lost, watch_s
        self._on_tokens = on_tokens
        # A rank that is stopped reads nothing: sending to it must not wait for ever.
        patience = struct.pack("ll", int(watch_s), int(watch_s % 1 * 1e6))
        for peer in self._peers:
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
            for job, name in ((self._listen, f"rank-{peer.rank}"), (self._send_rest, f"to-rank-{peer.rank}")):
                threading.Thread(target=job, args=(peer,), name=name, daemon=True).start()
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def say_ready(self) -> None:
        """From now on silence of this rank counts: it has loaded, which may keep a process from saying anything."""
        self._send_all(frame(READY))

    def pass_on(self, entry: bytes) -> None:
        """Sends an entry to all other ranks, without waiting for them; only on rank 0."""
        self._send_all(frame(ENTRY, entry))

    def tell_tokens(self, tokens: bytes) -> None:
        """Sends what a step has yielded to all other ranks, without waiting for them; only on rank 0."""
        self._send_all(frame(TOKENS, tokens))

    def leave(self) -> None:
        """This rank ends on purpose: the others are told, and their ends mean nothing any more."""
        self._leaving = True
        self._send_all(frame(FAREWELL))
        deadline_s = time.monotonic() + FAREWELL_S
        for peer in self._peers:
            peer.flush(deadline_s)

    def close(self) -> None:
        """Closes the connections; the others notice."""
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads it
            peer.socket.close()

    def _listen(self, peer: Peer) -> None:
        try:
            while True:
                kind, payload = receive(peer.socket)
                peer.heard_s = time.monotonic()
                if kind == ENTRY:
                    self._on_entry(payload)
                elif kind == TOKENS:
                    self._on_tokens(payload)
                elif kind == READY:
                    peer.is_ready = True
                elif kind == FAREWELL:
                    peer.has_left = True
        except (OSError, EOFError) as error:
            self._lose(peer, "has left" if peer.has_left else f"has ended ({error})")
        except Exception as error:  # whatever it was: nobody listens from now on, and a collective would wait for ever
            logger.debug("a frame of rank %d", peer.rank, exc_info=True)
            self._lose(peer, f"has sent what rank {self.ranks.rank} cannot take ({error!r})")

    def _beat(self) -> None:
        interval_s = self._watch_s / 8
        while not self._leaving:
            before_s = time.monotonic()
            self._beat_once()
            time.sleep(interval_s)
            now_s = time.monotonic()
            # A gap in the beats of this process, which stood still itself, says nothing about the others.
            stood_still = now_s - before_s > 4 * interval_s
            for peer in self._peers:
                if stood_still or (now_s - peer.heard_s > self._watch_s and _has_unread(peer.socket)):
                    peer.heard_s = now_s
                elif peer.is_ready and now_s - peer.heard_s > self._watch_s:
                    self._lose(peer, f"has been silent for {now_s - peer.heard_s:.1f} s")

    def _beat_once(self) -> None:
        self._send_all(frame(BEAT))

    def _send_all(self, data: bytes) -> None:
        for peer in self._peers:
            try:
                peer.send(data)
            except OSError as error:  # _listen sees its end
                logger.debug("rank %d takes nothing: %s", peer.rank, error)

    def _send_rest(self, peer: Peer) -> None:
        try:
            peer.send_rest()
        except BlockingIOError as error:
            self._lose(peer, f"cannot be reached: {error}")
        except OSError as error:  # _listen sees its end
            logger.debug("rank %d takes nothing: %s", peer.rank, error)

    def _lose(self, peer: Peer, why: str) -> None:
        if not (self._leaving or peer.is_lost):
            peer.is_lost = True
            self._on_lost(f"rank {peer.rank} {why}")


def meet(rendezvous: str, ranks: Ranks, group_id: str, greeting: dict[str, Any], timeout_s: float) -> GroupChannel:
    """Connects the ranks of a group.

    Args:
        rendezvous: HOST:PORT or unix:PATH, where rank 0 listens.
        greeting: On rank 0, what it tells the others.

    Raises:
        GroupFailed: They have not met in time, or one is of another group.
    """
    own = {"group_id": group_id, "size": ranks.size, "rank": ranks.rank}
    deadline_s = time.monotonic() + timeout_s
    try:
        return _gather(rendezvous, own, greeting, deadline_s) if ranks.rank == 0 else _join(rendezvous, own, deadline_s)
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise GroupFailed(
            f"rank {ranks.rank} of group {group_id!r} cannot meet the others at {rendezvous}: {error}"
        ) from error


def _gather(rendezvous: str, own: dict[str, Any], greeting: dict[str, Any], deadline_s: float) -> GroupChannel:
    peers: dict[int, Peer] = {}
    with _listener(rendezvous) as listener:
        while len(peers) < own["size"] - 1:
            listener.settimeout(max(deadline_s - time.monotonic(), 0.001))
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                missing = sorted(set(range(1, own["size"])) - peers.keys())
                raise TimeoutError(f"rank {', '.join(map(str, missing))} did not come") from None
            connection.settimeout(5.0)
            try:
                said = _receive_greeting(connection)
                if (said["group_id"], said["size"]) != (own["group_id"], own["size"]) or said["rank"] not in range(
                    1, own["size"]
                ):
                    raise ValueError(f"{said} is none of {own['size']} ranks of group {own['group_id']!r}")
            except (OSError, EOFError, ValueError, KeyError) as error:
                logger.warning("a connection to the rendezvous is refused: %s", error)
                connection.close()
                continue
            # A rank that comes twice has been started again.
            if (before := peers.pop(said["rank"], None)) is not None:
                before.socket.close()
            peers[said["rank"]] = Peer(said["rank"], _ready(connection))
    for peer in peers.values():
        peer.socket.sendall(frame(GREETING, json.dumps(greeting).encode()))
    address = _own_address(next(iter(peers.values())).socket)
    return GroupChannel(Ranks(0, own["size"]), [peers[rank] for rank in sorted(peers)], greeting, address)


def _join(rendezvous: str, own: dict[str, Any], deadline_s: float) -> GroupChannel:
    while True:
        try:
            connection = _connect(rendezvous, deadline_s)
            connection.settimeout(max(deadline_s - time.monotonic(), 0.001))
            connection.sendall(frame(GREETING, json.dumps(own).encode()))
            greeting = _receive_greeting(connection)
        except (ConnectionError, EOFError):  # rank 0 has ended, and may be started again
            if time.monotonic() > deadline_s:
                raise
            time.sleep(CONNECT_RETRY_S)
        else:
            peer = Peer(0, _ready(connection))
            return GroupChannel(Ranks(own["rank"], own["size"]), [peer], greeting, _own_address(connection))


def _listener(rendezvous: str) -> socket.socket:
    if rendezvous.startswith("unix:"):
        path = rendezvous.removeprefix("unix:")
        listener = socket.socket(socket.AF_UNIX)
        Path(path).unlink(missing_ok=True)  # of a rank 0 before this one
        listener.bind(path)
        listener.listen()
        return listener
    host, port = _host_and_port(rendezvous)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except socket.gaierror:  # the name of a pod may not be known before the pod is ready
        return socket.create_server(("", port))


def _connect(rendezvous: str, deadline_s: float) -> socket.socket:
    while True:
        try:
            if rendezvous.startswith("unix:"):
                connection = socket.socket(socket.AF_UNIX)
                connection.connect(rendezvous.removeprefix("unix:"))
                return connection
            return socket.create_connection(_host_and_port(rendezvous), timeout=5.0)
        except OSError:  # rank 0 does not listen yet, or has no address yet
            if time.monotonic() > deadline_s:
                raise
            time.sleep(CONNECT_RETRY_S)


def _host_and_port(rendezvous: str) -> tuple[str, int]:
    host, _, port = rendezvous.rpartition(":")
    return host.strip("[]"), int(port)


def _has_unread(connection: socket.socket) -> bool:
    """Whether something has come that no thread has found the time to read."""
    try:
        return bool(select.select([connection], [], [], 0)[0])
    except (OSError, ValueError):  # it was closed: _listen sees its end
        return False


def _ready(connection: socket.socket) -> socket.socket:
    connection.settimeout(None)
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _own_address(connection: socket.socket) -> str:
    return "127.0.0.1" if connection.family == socket.AF_UNIX else str(connection.getsockname()[0])


def _receive_greeting(connection: socket.socket) -> dict[str, Any]:
    kind, payload = receive(connection)
    said = json.loads(payload) if kind == GREETING else None
    if not isinstance(said, dict):
        raise ValueError("it does not greet as a rank does")
    return said
