"""HTTP connections of clients that break: half requests, bodies that stop, readers that leave, other protocols."""

import asyncio
import contextlib
import json
import random
import socket
import struct
from collections.abc import Callable

from fuzz_connections import KINDS as OTHER_PROTOCOLS

_PATHS = {
    "/v1/completions": {"prompt": "Once upon a time"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}]},
    "/v1/responses": {"input": "Hello"},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hello"}]},
}
_DEEP = 5_000
_MANY = 100_000


def _request(rng: random.Random, *, num_tokens: int = 400, stream: bool | None = None) -> bytes:
    """A request that takes some time."""
    path = rng.choice(list(_PATHS))
    length = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    body = {**_PATHS[path], length: num_tokens, "stream": rng.random() < 0.7 if stream is None else stream}
    return _post(json.dumps(body).encode(), path)


def _post(body: bytes, path: str = "/v1/completions", length: int | None = None, headers: bytes = b"") -> bytes:
    size = len(body) if length is None else length
    head = b"POST %s HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n" % path.encode()
    return head + headers + b"content-length: %d\r\n\r\n" % size + body


def _chunked(rng: random.Random, tail: bytes) -> bytes:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    body = b'{"prompt": "Hello", '
    return head + b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(body), body) + tail


def _odd_json(rng: random.Random) -> bytes:
    odd = (
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "temperature": 1e400}',
        b'{"prompt": "a", "seed": %s}' % (b"9" * 5_000),
        b'{"prompt": "a", "max_tokens": 1, "max_tokens": 2, "prompt": "b"}',
        b'{"prompt": ' + b"[" * _DEEP + b"]" * _DEEP + b"}",
        b'{"prompt": "a", "x": ' + b'{"a":' * _DEEP + b"1" + b"}" * _DEEP + b"}",
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\\u0000"}',
        b'\xef\xbb\xbf{"prompt": "a"}',
        b"null",
        b'{"prompt": [' + b"1," * _MANY + b"1]}",
        b'{"' + b"a" * _MANY + b'": 1, "prompt": "a"}',
        b'{"messages": [' + b'{"role":"user","content":"a"},' * _MANY + b'{"role":"user","content":"a"}]}',
    )
    return _post(rng.choice(odd), rng.choice(list(_PATHS)))


KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "half a head": lambda rng: _request(rng)[: rng.randint(1, 80)],
    "half a body": lambda rng: _request(rng)[: -rng.randint(1, 30)],
    "length too large": lambda rng: _post(b'{"prompt": "a"}', length=rng.choice((1_000, 1 << 24, 1 << 30, 1 << 62))),
    "length too small": lambda rng: _post(b'{"prompt": "a", "max_tokens": 3}', length=rng.randint(0, 10)),
    "chunks that stop": lambda rng: _chunked(rng, rng.choice((b"", b"5", b"ffff\r\nabc", b"5\r\nabc"))),
    "chunks that are none": lambda rng: _chunked(rng, rng.choice((b"zz\r\n", b"-1\r\n", b"fffffffffffffffff\r\n"))),
    "chunk of many extensions": lambda rng: _chunked(rng, b"5;" + b"a=b;" * 50_000),
    "trailers": lambda rng: _chunked(rng, b"0\r\n" + b"a: b\r\n" * rng.choice((1, 50_000))),
    "both lengths": lambda rng: _post(b"{}", headers=b"transfer-encoding: chunked\r\n"),
    "headers flood": lambda rng: b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 50_000,
    "huge header": lambda rng: b"GET / HTTP/1.1\r\na: " + b"b" * 500_000,
    "huge path": lambda rng: b"GET /" + b"b" * 500_000,
    "pipelined": lambda rng: b"GET /version HTTP/1.1\r\nhost: a\r\n\r\n" * rng.choice((2, 60, 5_000)),
    "pipelined behind a stream": lambda rng: _request(rng, stream=True) + _request(rng) * rng.choice((1, 100)),
    "garbage behind a stream": lambda rng: _request(rng, stream=True) + rng.randbytes(500),
    "upgrade": lambda rng: _post(b'{"prompt": "a"}', headers=b"connection: upgrade\r\nupgrade: h2c\r\n"),
    "expectation": lambda rng: _post(b"", length=50, headers=b"expect: 100-continue\r\n"),
    "odd JSON": _odd_json,
    "request": _request,
    "whole request": lambda rng: _request(rng, stream=False),
    "TLS hello": OTHER_PROTOCOLS["TLS hello"],
    "HTTP/2": OTHER_PROTOCOLS["call"],
    "bytes": OTHER_PROTOCOLS["bytes"],
}
LIFE_S = 10.0


async def disturb(rng: random.Random, port: int) -> str:
    """One such connection, which stays open for a while, reads or does not, and ends or resets. Returns its kind."""
    kind = rng.choice(list(KINDS))
    data = KINDS[kind](rng)
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(LIFE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 12)
            try:
                await _send(rng, writer, data)
                if rng.random() < 0.7:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(rng.choice((0.0, 0.02, 0.2, 1.0))):
                            while await reader.read(1 << 12):
                                await asyncio.sleep(0)
                else:
                    await asyncio.sleep(rng.choice((0.1, 1.0)))  # Nobody reads what comes.
            finally:
                if rng.random() < 0.5:
                    opened = writer.get_extra_info("socket")
                    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.close()
    return kind


async def _send(rng: random.Random, writer: asyncio.StreamWriter, data: bytes) -> None:
    """At once, or a few bytes at a time."""
    if rng.random() < 0.2:
        for start in range(0, min(len(data), 200), 8):
            writer.write(data[start : start + 8])
            await asyncio.sleep(0.01)
            if writer.is_closing():
                return
        data = data[200:]
    writer.write(data)
    await writer.drain()
