"""The connection to another rank of the group: frames of a kind and a length, which wait for no reader."""

import contextlib
import socket
import struct
import threading
import time
from collections import deque

HEADER = struct.Struct("!BI")
"""Kind and length of a frame."""
GREETING, BEAT, ENTRY, READY, FAREWELL, TOKENS = range(6)
MAX_FRAME_BYTES = 1 << 30


class Peer:
    """Another rank."""

    def __init__(self, rank: int, connection: socket.socket) -> None:
        self.rank = rank
        self.socket = connection
        self.heard_s = time.monotonic()
        self.is_ready = False
        """It has loaded, so that it can say that it is alive."""
        self.has_left = False
        self.is_lost = False
        """Others have been told that it is lost."""
        self._unsent: deque[bytes] = deque()
        """What the connection did not take at once. The first one stays until it is sent."""
        self._changed = threading.Condition()

    def send(self, data: bytes) -> None:
        """Sends frames without waiting: what the connection does not take is left to send_rest. Raises OSError."""
        with self._changed:
            if not self._unsent:
                with contextlib.suppress(BlockingIOError):
                    data = data[self.socket.send(data, socket.MSG_DONTWAIT) :]
            if data:
                self._unsent.append(data)
                self._changed.notify_all()

    def send_rest(self) -> None:
        """Sends what is left, for ever; on a thread of its own. Raises OSError, BlockingIOError if it takes nothing."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._unsent)
                data = self._unsent[0]
            self.socket.sendall(data)
            with self._changed:
                self._unsent.popleft()
                self._changed.notify_all()

    def flush(self, deadline_s: float) -> None:
        """Waits until all is sent, or until this time of time.monotonic()."""
        with self._changed:
            self._changed.wait_for(lambda: not self._unsent, max(deadline_s - time.monotonic(), 0.0))


def frame(kind: int, payload: bytes = b"") -> bytes:
    """What is sent."""
    return HEADER.pack(kind, len(payload)) + payload


def receive(connection: socket.socket) -> tuple[int, bytes]:
    """The next frame's kind and payload. Raises OSError, EOFError; ValueError: it is no frame."""
    kind, length = HEADER.unpack(_read(connection, HEADER.size))
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes")
    return kind, _read(connection, length)


def _read(connection: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            raise EOFError("its connection was closed")
        data += part
    return bytes(data)
