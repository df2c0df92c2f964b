"""Logs of hostile clients at --log-level debug hold nothing that these sent, and hardly a line."""

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, free_port, shards_and_router
from pagewire import Client
from streams import GREEDY, TEXT

SECRET = b"SECRETKEY-1234567890"
MAX_LINES = 3
"""One a minute, and some that have nothing to do with these clients."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """An HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header field, not indexed, not compressed."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def call(stream: int, *fields: tuple[bytes, bytes]) -> bytes:
    """A call of Complete with these header fields."""
    own = [
        *((b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/pagewire.v1.Inference/Complete")),
        *((b":authority", b"x"), (b"te", b"trailers"), (b"content-type", b"application/grpc")),
    ]
    block = b"".join(literal(name, value) for name, value in [*own, *fields])
    return frame(1, 4, stream, block) + frame(0, 1, stream, b"\0" + struct.pack(">I", 0))


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0)
GARBAGE = [
    b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + SECRET + b"\r\n\r\n",
    b"GET /" + SECRET + b"\xff HTTP/9\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + SECRET * 10,
    os.urandom(200) + SECRET,
    PREFACE + frame(1, 4, 1, b"\xff" * 50 + SECRET),
    PREFACE + frame(99, 255, 7, SECRET) + frame(0, 0, 3, SECRET),
    PREFACE + call(1, (b"authorization", b"Bearer " + SECRET + b"\xc3")),
    PREFACE + call(1, (b"x-any", SECRET + b"\xff"), (b"x-bin", SECRET), (b"grpc-timeout", SECRET)),
    PREFACE + call(1, (b"traceparent", SECRET + b"\xe9"), (b"user-agent", b"\xf0" + SECRET)),
]


@pytest.fixture(scope="module")
def open_ports(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, list[int]]]:
    """A router and a shard that debug, and their ports."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_bytes(SECRET)
    keys.chmod(0o644)
    ports = [free_port() for _ in range(4)]
    router_flags = [
        *("--listen", f"127.0.0.1:{ports[0]}", "--metrics-port", str(ports[1]), "--health-port", str(ports[2])),
        *("--api-keys", str(keys), "--log-level", "debug"),
    ]
    shard_flags = ("--log-level", "debug", "--health-port", str(ports[3]))
    with shards_and_router(model, *shard_flags, router_flags=router_flags) as cluster:
        yield cluster, [*ports[:3], cluster.metrics_ports[0]]


def send(port: int, data: bytes) -> None:
    """Opens a connection, sends and waits a little for an answer."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        connection.sendall(data)
        connection.settimeout(0.05)
        connection.recv(1000)


def num_lines(cluster: Cluster) -> list[int]:
    return [len(service.errors.splitlines()) for service in (cluster.router, *cluster.shards)]


def test_hostile_connections_leave_no_trace_and_few_lines(open_ports: tuple[Cluster, list[int]]) -> None:
    cluster, ports = open_ports
    before = num_lines(cluster)
    for i in range(360):
        send(ports[i % len(ports)], GARBAGE[i // len(ports) % len(GARBAGE)])
    with Client(cluster.address, api_key=SECRET.decode()) as client:
        assert client.complete(TEXT, GREEDY).outputs, "it serves on"
    grown = [after - old for old, after in zip(before, num_lines(cluster), strict=True)]
    assert max(grown) <= MAX_LINES, cluster.log()
    log = cluster.router.errors + cluster.shards[0].errors
    assert SECRET.decode() not in log
    assert "Traceback" not in log


def test_a_file_of_keys_that_others_may_read_is_warned_of(open_ports: tuple[Cluster, list[int]]) -> None:
    cluster, _ = open_ports
    warnings = [line for line in cluster.router.errors.splitlines() if "other users of this machine may read" in line]
    assert len(warnings) == 1
