"""Reads the bodies of requests: bounded in size, in time, and in how many are read at once."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

import orjson

from pagewire_router.caller import Caller
from pagewire_router.errors import QueueFull
from pagewire_router.fair_slots import FairSlots
from pagewire_router.http_front.errors import HttpError

Receive = Callable[[], Awaitable[Mapping[str, Any]]]

MAX_RECEIVING_BYTES = 256 << 20
"""Bodies that are being read take no more than this together, beside small ones."""
MIN_BODIES = 4
"""Large bodies that may be read at a time, whatever their size."""
SMALL_BYTES = 64 << 10
"""Bodies up to this size are read at once."""
MAX_HELD_BYTES = 256 << 20
"""Large bodies of requests that are not answered yet take no more than this together, half of it
those of one client: what they say is held until the answer."""
MAX_WAITING = 4096
"""Most requests that may wait until their large body is read."""
RECEIVE_TIMEOUT_S = 30.0
"""A body must be complete after this time."""
GRACE_S = 3.0
MIN_BYTES_PER_S = 16 << 10
"""A large body that is being read must come as fast, after GRACE_S: it keeps others waiting."""
RETRY_AFTER_S = 1.0
MAX_BRACKETS = 1 << 20
"""Most arrays and objects of a body: parsing more of them would hold up all other requests."""
MAX_COMMAS = 1 << 21
"""Most commas of a body, since each may separate two numbers or keys: parsing more would hold up all other requests."""
MAX_DEPTH = 128
"""Deepest nesting of a body. It can be written again within other values: JSON is written some 250 deep at most."""


_MAX_WRITTEN_DEPTH = 254
"""Deepest nesting that orjson writes."""


class ClientGone(Exception):
    """The client has closed the connection before its request was complete."""


class BodyReader:
    """Reads the bodies of all requests of one server."""

    def __init__(self, max_bytes: int) -> None:
        """max_bytes: largest body that is accepted."""
        self._max_bytes = max_bytes
        self._held: dict[str, int] = {}
        """Bytes of large bodies by the owner of their requests."""
        self._slots = FairSlots(max(MIN_BODIES, MAX_RECEIVING_BYTES // max_bytes))

    async def read(self, receive: Receive, headers: Mapping[bytes, bytes], caller: Caller) -> bytes:
        """The whole body. Raises HttpError, QueueFull, ClientGone."""
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._max_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(RECEIVE_TIMEOUT_S) as deadline:
                return await self._read(receive, caller, deadline)
        except TimeoutError:
            message = f"the body was not complete after {RECEIVE_TIMEOUT_S:g} s, or came too slowly"
            raise HttpError(HTTPStatus.REQUEST_TIMEOUT, message, code="timeout") from None

    def hold(self, body: bytes, caller: Caller) -> int:
        """Counts a body until release() is called with what this returns. Raises QueueFull."""
        num_bytes = len(body)
        if num_bytes <= SMALL_BYTES:
            return 0
        held = self._held.get(caller.owner, 0) + num_bytes
        if held > MAX_HELD_BYTES // 2 or sum(self._held.values()) + num_bytes > MAX_HELD_BYTES:
            raise QueueFull("too many large requests wait for their answers", retry_after_s=RETRY_AFTER_S)
        self._held[caller.owner] = held
        return num_bytes

    def release(self, num_bytes: int, caller: Caller) -> None:
        """The request is answered."""
        if num_bytes:
            self._held[caller.owner] -= num_bytes
            if not self._held[caller.owner]:
                del self._held[caller.owner]

    async def _read(self, receive: Receive, caller: Caller, deadline: asyncio.Timeout) -> bytes:
        end_s = deadline.when() or 0.0
        slot_end_s = 0.0
        chunks: list[bytes] = []
        num_bytes = 0
        has_slot = False
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk: bytes = message.get("body", b"")
                num_bytes += len(chunk)
                if num_bytes > self._max_bytes:
                    raise self._too_large()
                chunks.append(chunk)
                if not message.get("more_body"):
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
                if num_bytes > SMALL_BYTES and not has_slot:
                    await self._take_slot(caller)
                    has_slot = True
                    slot_end_s = asyncio.get_running_loop().time() + GRACE_S
                elif has_slot:
                    slot_end_s += len(chunk) / MIN_BYTES_PER_S
                if has_slot:
                    deadline.reschedule(min(end_s, slot_end_s))
        finally:
            if has_slot:
                self._slots.release()

    async def _take_slot(self, caller: Caller) -> None:
        if self._slots.take():
            return
        if self._slots.num_waiting >= MAX_WAITING:
            raise QueueFull("too many large bodies wait to be received", retry_after_s=RETRY_AFTER_S)
        await self._slots.wait(caller)

    def _too_large(self) -> HttpError:
        message = f"the body has more than {self._max_bytes} bytes, which is the most accepted (--http-max-body-bytes)"
        return HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, code="request_too_large")


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises HttpError."""
    num_brackets = body.count(b"{") + body.count(b"[")
    if num_brackets > MAX_BRACKETS:
        raise _no_object(f"holds more than {MAX_BRACKETS} arrays and objects")
    if body.count(b",") > MAX_COMMAS:
        raise _no_object(f"holds more than {MAX_COMMAS} commas; send its prompts in several requests")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _no_object(f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise _no_object("is no JSON object")
    if num_brackets > MAX_DEPTH and is_nested_deeply(value):
        raise _no_object(f"nests arrays and objects more than {MAX_DEPTH} deep")
    return value


def is_nested_deeply(value: Any) -> bool:
    """Whether a value that orjson has read is nested more than MAX_DEPTH deep."""
    for _ in range(_MAX_WRITTEN_DEPTH - MAX_DEPTH):
        value = [value]
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError:
        return True
    return False


def _no_object(what: str) -> HttpError:
    return HttpError(HTTPStatus.BAD_REQUEST, f"the body {what}", code="invalid_json")
