"""Renders templates that clients send, in a process that can be killed and runs template_worker.py."""

import asyncio
import json
import math
import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from subprocess import DEVNULL, Popen

from pagewire_router.caller import Caller
from pagewire_router.errors import QueueFull, Unavailable
from pagewire_router.fair_slots import FairSlots
from pagewire_router.text.chat_template import ChatTemplateError, Conversation, RenderedTooLong
from pagewire_router.text.template_worker import LENGTH_BYTES, READY, TEXT, TOO_LONG
from pagewire_router.text.text_threads import STOP_RETRY_S

MAX_TEMPLATE_BYTES = 64 * 1024
"""Largest template that a client may send. Templates of models have up to 20 kB."""
MAX_SECONDS = 2.0
"""Longest time for compiling and rendering; then the process is killed."""
MAX_START_S = 10.0
"""Longest time for the process to start."""
MAX_WAITING = 64
"""Most requests that may wait for the process; more are refused."""
MAX_WAITING_OF_OWNER = 8
"""Most waiting requests of one client, which leaves room for others."""


def encode_request(
    template: str, conversation: Conversation, special_tokens: Mapping[str, str], max_chars: int
) -> bytes:
    """Encodes a request to the process."""
    request = {
        "template": template,
        "conversation": {field.name: getattr(conversation, field.name) for field in fields(conversation)},
        "special_tokens": dict(special_tokens),
        "max_chars": max_chars,
    }
    return json.dumps(request).encode()


@dataclass(frozen=True, slots=True)
class _Worker:
    """A running process, and the connection to its standard input and output."""

    process: Popen[bytes]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    reaper: threading.Thread
    """Waits for the end of the process, so that it leaves no zombie."""

    @staticmethod
    async def start(max_cpu_s: int) -> "_Worker":
        """Starts a process without the router's environment, except the time zone, and without its open files."""
        environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        if "TZ" in os.environ:
            environment["TZ"] = os.environ["TZ"]
        command = (sys.executable, "-P", "-m", "pagewire_router.text.template_worker", str(max_cpu_s))
        ours, theirs = socket.socketpair()
        with theirs:
            # Not the event loop's own way to start processes: uvloop forks, which gRPC does not like.
            process = Popen(command, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=DEVNULL, env=environment)
        reaper = threading.Thread(target=process.wait, name="template-reaper", daemon=True)
        reaper.start()
        try:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
        except BaseException:
            process.kill()
            ours.close()
            raise
        return _Worker(process, reader, writer, reaper)

    def kill(self) -> None:
        """Ends the process at once."""
        with suppress(ProcessLookupError):
            self.process.kill()
        self.writer.transport.abort()

    async def ask(self, request: bytes) -> bytes:
        """The answer to a request. Raises EOFError or OSError if the process ends."""
        self.writer.write(len(request).to_bytes(LENGTH_BYTES, "big") + request)
        await self.writer.drain()
        head = await self.reader.readexactly(LENGTH_BYTES)
        return await self.reader.readexactly(int.from_bytes(head, "big"))


class TemplateProcess:
    """The process that renders templates, one request at a time; clients take turns.

    It is started when it is first needed. It is killed when a request takes too long or its client goes away, and
    started again for the next request.
    """

    def __init__(self, *, max_seconds: float = MAX_SECONDS, max_waiting: int = MAX_WAITING) -> None:
        self._max_seconds = max_seconds
        self._max_waiting = max_waiting
        self._waiting: Counter[str] = Counter()
        self._turn = FairSlots(1)
        self._worker: _Worker | None = None
        self._is_closed = False

    async def render(self, request: bytes, caller: Caller) -> str:
        """Renders an encoded request.

        Raises:
            ChatTemplateError: the template is malformed, refuses the messages, or takes too much time or memory.
            RenderedTooLong: the template writes too much.
            QueueFull: too many requests wait for the process.
            Unavailable: the process does not start, or the router stops.
        """
        if self._turn.take():
            return await self._render_in_turn(request)
        if self._turn.num_waiting >= self._max_waiting or self._waiting[caller.owner] >= MAX_WAITING_OF_OWNER:
            raise QueueFull(
                "too many requests with chat templates of their own wait to be rendered",
                retry_after_s=self._max_seconds,
            )
        self._waiting[caller.owner] += 1
        try:
            await self._turn.wait(caller)
        finally:
            self._waiting[caller.owner] -= 1
            if not self._waiting[caller.owner]:
                del self._waiting[caller.owner]
        return await self._render_in_turn(request)

    async def close(self) -> None:
        """Ends the process. Requests that wait for it fail."""
        self._is_closed = True
        self._turn.fail_waiting(_stopping())
        worker = self._discard()
        if worker is not None:
            await asyncio.to_thread(worker.reaper.join)

    async def _render_in_turn(self, request: bytes) -> str:
        try:
            return await self._render(request)
        finally:
            self._turn.release()

    async def _render(self, request: bytes) -> str:
        worker = await self._running()
        try:
            answer = await asyncio.wait_for(worker.ask(request), self._max_seconds)
        except TimeoutError:
            self._discard()
            raise ChatTemplateError(f"the chat template takes more than {self._max_seconds:g} s") from None
        except (EOFError, OSError):
            self._discard()
            if self._is_closed:
                raise _stopping() from None
            raise ChatTemplateError("the chat template needs too much memory or computing time") from None
        except BaseException:  # The client has gone, and nobody waits for the rest of the rendering.
            self._discard()
            raise
        return _read_answer(answer)

    async def _running(self) -> _Worker:
        if self._worker is not None and self._worker.process.returncode is None:
            return self._worker
        self._discard()
        if self._is_closed:
            raise _stopping()
        self._worker = worker = await _Worker.start(math.ceil(self._max_seconds))
        is_ready = False
        try:
            with suppress(TimeoutError, OSError):
                is_ready = await asyncio.wait_for(worker.reader.read(1), MAX_START_S) == READY
        finally:
            if not is_ready:
                self._discard()
        if self._is_closed:
            raise _stopping()
        if not is_ready:
            raise Unavailable("the process that renders chat templates does not start", retry_after_s=1.0)
        return worker

    def _discard(self) -> _Worker | None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()
        return worker


def _stopping() -> Unavailable:
    return Unavailable("the router stops", retry_after_s=STOP_RETRY_S)


def _read_answer(answer: bytes) -> str:
    kind, content = answer[:1], answer[1:].decode()
    if kind == TEXT:
        return content
    raise RenderedTooLong(content) if kind == TOO_LONG else ChatTemplateError(content)
