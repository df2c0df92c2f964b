"""Connections that are no clients: other protocols, broken and flooding HTTP/2, calls that stop in the middle."""

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Callable

from http2_frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    call_headers,
    frame,
    literal,
)

_START = PREFACE + frame(SETTINGS, 0, 0)
_PATHS = (
    "/pagewire.v1.Inference/Generate",
    "/pagewire.v1.Inference/Nothing",
    "/",
    "",
    "x" * 100,
    "/grpc.health.v1.Health/Watch",
)


def _call(rng: random.Random, stream: int = 1, *further: tuple[str, str]) -> bytes:
    return frame(HEADERS, END_HEADERS, stream, call_headers(rng.choice(_PATHS), *further))


def _tls_hello(rng: random.Random) -> bytes:
    body = b"\x03\x03" + rng.randbytes(32) + b"\0\0\x02\x13\x01\x01\0\0\0"
    hello = b"\x01" + struct.pack(">I", len(body))[1:] + body
    return b"\x16\x03\x01" + struct.pack(">H", len(hello)) + hello


def _rapid_reset(rng: random.Random) -> bytes:
    streams = range(1, 2 * rng.choice((10, 500)), 2)
    return _START + b"".join(_call(rng, s) + frame(RST_STREAM, 0, s, struct.pack(">I", 8)) for s in streams)


def _continuations(rng: random.Random) -> bytes:
    part = literal("a" * 20, "b" * 100)
    return _START + frame(HEADERS, 0, 1, part) + frame(CONTINUATION, 0, 1, part) * rng.choice((1, 1_000))


def _hpack_bomb(rng: random.Random) -> bytes:
    """A large header goes to the dynamic table, and is then named by one byte, again and again."""
    large = b"\x40\x01a\x7f" + b"\xe1\x1d" + b"z" * (127 + 0x61 + (0x1D << 7))
    return _START + frame(HEADERS, END_HEADERS, 1, large[:4000]) + frame(HEADERS, END_HEADERS, 3, b"\xbe" * 16_000)


def _half_message(rng: random.Random) -> bytes:
    length = rng.choice((10, 100_000, 1 << 24, 0xFFFFFFFF))
    return _START + _call(rng) + frame(DATA, 0, 1, struct.pack(">BI", rng.choice((0, 0, 1, 255)), length) + b"z" * 9)


def _random_frames(rng: random.Random) -> bytes:
    frames = (
        frame(rng.randrange(12), rng.randrange(256), rng.randrange(8), rng.randbytes(rng.randrange(40)))
        for _ in range(20)
    )
    return _START + b"".join(frames)


KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "nothing": lambda rng: b"",
    "bytes": lambda rng: rng.randbytes(rng.choice((1, 24, 1_000, 50_000))),
    "HTTP/1": lambda rng: rng.choice(
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"POST /metrics HTTP/1.0\r\n\r\n" + b"x" * 9_000)
    ),
    "HTTP/1 without end": lambda rng: b"GET /" + b"a" * rng.choice((10, 100_000)),
    "HTTP/1 of many headers": lambda rng: b"GET /metrics HTTP/1.1\r\n" + b"a: b\r\n" * rng.choice((10, 5_000)),
    "TLS hello": _tls_hello,
    "part of the preface": lambda rng: PREFACE[: rng.randrange(24)],
    "preface": lambda rng: PREFACE,
    "half a frame": lambda rng: _START + _call(rng)[: rng.randint(1, 30)],
    "frame too large": lambda rng: _START + b"\xff\xff\xff\0\0\0\0\0\1" + b"z" * 20_000,
    "random frames": _random_frames,
    "settings flood": lambda rng: PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, rng.randrange(1 << 32))) * 500,
    "ping flood": lambda rng: _START + frame(PING, 0, 0, rng.randbytes(8)) * 500,
    "window overflow": lambda rng: _START + frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 3,
    "rapid reset": _rapid_reset,
    "continuation flood": _continuations,
    "HPACK bomb": _hpack_bomb,
    "bad HPACK": lambda rng: _START + frame(HEADERS, END_HEADERS, 1, rng.randbytes(60)),
    "headers beyond limits": lambda rng: _START + _call(rng, 1, *[("a" * 20, "b" * 100)] * 120),
    "header that is not UTF-8": lambda rng: _START + _raw_authorization(rng),
    "call": lambda rng: _START + _call(rng),
    "half a message": _half_message,
    "empty data flood": lambda rng: _START + _call(rng) + frame(DATA, 0, 1) * 500,
    "even stream": lambda rng: _START + _call(rng, 2),
    "goaway": lambda rng: _START + _call(rng) + frame(GOAWAY, 0, 0, struct.pack(">II", 0, 0)),
    "bad timeout": lambda rng: _START + _call(rng, 1, ("grpc-timeout", rng.choice(("1n", "-1S", "99999999H", "x")))),
    "bad encoding": lambda rng: (
        _START + _call(rng, 1, ("grpc-encoding", "nonsense")) + frame(DATA, 1, 1, b"\1\0\0\0\1z")
    ),
}


def _raw_authorization(rng: random.Random) -> bytes:
    value = b"Bearer \xc3(" + rng.randbytes(4)
    headers = call_headers(_PATHS[0]) + b"\0\x0dauthorization" + bytes([len(value)]) + value
    return frame(HEADERS, END_HEADERS, 1, headers)


async def disturb(rng: random.Random, port: int) -> str:
    """One such connection to a port of this machine, ended by this side or by a reset. Returns its kind."""
    kind = rng.choice(list(KINDS))
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(KINDS[kind](rng))
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1 << 16), rng.choice((0.0, 0.02, 0.2)))
                if rng.random() < 0.3:
                    opened = writer.get_extra_info("socket")
                    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            finally:
                writer.close()
    return kind
