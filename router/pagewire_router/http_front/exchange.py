"""One HTTP request and the answer to it."""

import asyncio
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pagewire_router.admission.call import Call
from pagewire_router.http_front.body import BodyReader, ClientGone, Receive, parse_object
from pagewire_router.http_front.errors import RenameField
from pagewire_router.http_front.event_stream import COMMENT, WRITE_NOW, EventStream, Send, WriteNow
from pagewire_router.http_front.fields import FieldTable

Scope = Mapping[str, Any]
Headers = list[tuple[bytes, bytes]]
JSON = b"application/json"
MAX_REQUEST_ID_CHARS = 256
IGNORED_FIELDS = b"x-pagewire-ignored-fields"
"""Header of an answer: fields of the request that its route does not know."""
MAX_IGNORED_NAMES = 16
CLOSED = "the handler is closed"
"""Part of what uvloop says of a write to a connection that is lost, until it has told uvicorn of the loss."""


_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)


class Exchange:
    """A request as it was received, and its answer as far as it was sent."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.route = ""
        """The path as the routes name it, where part of it may be a parameter."""
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        """Headers of the request; of those that are repeated, the last."""
        self.request_id = self._request_id()
        self.call: Call
        """Set when the caller is known."""
        self.status: int | None = None
        """Status that was sent; None: no answer has begun."""
        self.rename: RenameField = str
        """Maps fields of GenerateRequest to those of the route, for errors."""
        self.num_held_bytes = 0
        """Bytes of the body that the reader counts as held."""
        self.is_client_gone = False
        self.is_stream = False
        """The answer is a stream of events."""
        self.num_received_bytes = 0
        """Of the body, once it has been read."""
        self._num_sent_bytes = 0
        self._events: EventStream | None = None
        self._receive = receive
        self._asgi_send = send
        self._asgi_write_now: WriteNow | None = scope.get("extensions", {}).get(WRITE_NOW, {}).get("write")
        self.extra_headers: Headers = [(b"x-request-id", self.request_id.encode("latin-1"))]
        """Headers of the answer, whatever it is."""

    def _request_id(self) -> str:
        """The id that the client or a proxy has given the request, or a new one."""
        given = self.headers.get(b"x-request-id", b"")[:MAX_REQUEST_ID_CHARS].decode("latin-1")
        return given if given.isprintable() and given else uuid.uuid4().hex

    @property
    def num_sent_bytes(self) -> int:
        """Bytes of the answer's body so far."""
        return self._num_sent_bytes if self._events is None else self._events.num_bytes

    async def read_body(self, reader: BodyReader) -> bytes:
        """The body of the request, whose num_held_bytes must be released. Raises what BodyReader.read() does."""
        body = await reader.read(self._receive, self.headers, self.call.caller)
        self.num_received_bytes = len(body)
        self.num_held_bytes = reader.hold(body, self.call.caller)
        return body

    def read_fields(self, table: FieldTable, body: bytes) -> dict[str, Any]:
        """The values of a body's fields. Raises HttpError.

        Clients send fields of other servers along: those that are not known are named in a header of the answer.
        """
        unknown: list[str] = []
        values = table.read(parse_object(body), unknown=unknown)
        names = [name for name in unknown[:MAX_IGNORED_NAMES] if _NAME.fullmatch(name)]
        if names:
            self.extra_headers.append((IGNORED_FIELDS, ", ".join(names).encode()))
        return values

    async def answer(
        self, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]] = (), *, content_type: bytes = JSON
    ) -> None:
        """Sends the whole answer."""
        self.status = int(status)
        all_headers = [
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(body)),
            *self.extra_headers,
            *headers,
        ]
        await self._send({"type": "http.response.start", "status": self.status, "headers": all_headers})
        await self._send({"type": "http.response.body", "body": body})
        self._num_sent_bytes = len(body)

    async def start_events(self, sign_of_life: bytes = COMMENT) -> EventStream:
        """Begins an answer that is a stream of events. sign_of_life: see EventStream."""
        self.status, self.is_stream = 200, True
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            # Proxies that buffer answers would hold tokens back.
            (b"x-accel-buffering", b"no"),
            *self.extra_headers,
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        write_now = None if self._asgi_write_now is None else self._write_now
        self._events = EventStream(self._send, sign_of_life, write_now)
        return self._events

    async def _send(self, message: dict[str, Any]) -> None:
        """Sends a message. Raises ClientGone."""
        try:
            await self._asgi_send(message)
        except RuntimeError as error:
            if CLOSED not in str(error):
                raise
            raise ClientGone from None

    def _write_now(self, data: bytes) -> bool:
        """See WriteNow. Raises ClientGone."""
        assert self._asgi_write_now is not None
        try:
            return self._asgi_write_now(data)
        except RuntimeError as error:
            if CLOSED not in str(error):
                raise
            raise ClientGone from None

    @contextmanager
    def cancelled_without_client(self) -> Iterator[None]:
        """Cancels the current task within the block if the client closes the connection."""
        task = asyncio.current_task()
        assert task is not None
        watch = asyncio.create_task(self._wait_until_gone(task), name="client")
        try:
            yield
        finally:
            watch.cancel()

    async def _wait_until_gone(self, task: "asyncio.Task[Any]") -> None:
        # Empty messages may follow the body.
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.is_client_gone = True
        task.cancel()
