"""HTTP/2 by hand: calls that send a part of their message, frames and headers that no gRPC client would send."""

import asyncio
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
_INITIAL_WINDOW = 65_535


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name: str, value: str) -> bytes:
    """A header that is not indexed; both parts are shorter than 127 bytes."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def call_headers(path: str, *further: tuple[str, str]) -> bytes:
    """The headers of a gRPC call."""
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *further,
    ]
    return b"".join(literal(name, value) for name, value in fields)


class RawCall:
    """One call on a connection of its own. Window updates, settings and pings are answered in the background."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._window = [_INITIAL_WINDOW, _INITIAL_WINDOW]
        """Bytes that may be sent: on the connection, on the stream."""
        self._changed = asyncio.Event()
        self._status: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._listen())

    @classmethod
    async def open(cls, address: str, path: str, *headers: tuple[str, str]) -> "RawCall":
        """Connects and begins a call."""
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, call_headers(path, *headers)))
        return cls(reader, writer)

    async def send(self, data: bytes, *, is_last: bool = False, patience_s: float = 10.0) -> int:
        """Sends bytes of the message as far as the server lets; returns how many it took."""
        position = 0
        while position < len(data) and not self._status.done():
            size = min(16_384, len(data) - position, *self._window)
            if size <= 0:
                self._changed.clear()
                try:
                    await asyncio.wait_for(self._changed.wait(), patience_s)
                except TimeoutError:
                    return position
                continue
            flags = END_STREAM if is_last and position + size == len(data) else 0
            self._writer.write(frame(DATA, flags, 1, data[position : position + size]))
            await self._writer.drain()
            await asyncio.sleep(0)  # Else nothing is heard of the server while it takes all.
            position += size
            self._window = [window - size for window in self._window]
        return position

    async def status(self, timeout_s: float = 20.0) -> str:
        """grpc-status, as the trailers have it; "reset" where the stream or the connection ended without one."""
        return await asyncio.wait_for(asyncio.shield(self._status), timeout_s)

    def close(self) -> None:
        """Drops the connection."""
        self._task.cancel()
        self._writer.transport.abort()

    async def _listen(self) -> None:
        try:
            while True:
                head = await self._reader.readexactly(9)
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                self._take(head[3], head[4], int.from_bytes(head[5:], "big"), payload)
                self._changed.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            self._end("reset")
            self._changed.set()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            self._window[0 if stream == 0 else 1] += int.from_bytes(payload, "big")
        elif kind == SETTINGS and not flags & ACK:
            for start in range(0, len(payload), 6):
                name, value = struct.unpack(">HI", payload[start : start + 6])
                if name == 4:
                    self._window[1] += value - _INITIAL_WINDOW
            self._writer.write(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self._writer.write(frame(PING, ACK, 0, payload))
        elif kind == HEADERS and b"grpc-status" in payload:
            start = payload.index(b"grpc-status") + len(b"grpc-status")
            self._end(payload[start + 1 : start + 1 + payload[start]].decode("latin-1"))
        elif kind in (RST_STREAM, GOAWAY):
            self._end("reset")

    def _end(self, status: str) -> None:
        if not self._status.done():
            self._status.set_result(status)
