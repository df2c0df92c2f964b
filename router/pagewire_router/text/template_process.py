"""Rendering templates that clients send, in a process that can be killed. template_worker.py is what runs there."""

import asyncio
import json
import math
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields

from pagewire_router.errors import QueueFull, Unavailable
from pagewire_router.text.chat_template import ChatTemplateError, Conversation, RenderedTooLong
from pagewire_router.text.template_worker import LENGTH_BYTES, READY, TEXT, TOO_LONG

MAX_TEMPLATE_BYTES = 64 * 1024
"""Size of a template that a client sends; those of models have up to 20 kB."""
MAX_SECONDS = 2.0
"""For compiling and rendering, until the process is killed."""
MAX_START_S = 10.0
"""For the process to start."""
MAX_WAITING = 16
"""Requests that may wait for the process before new ones are refused."""


def encode_request(
    template: str, conversation: Conversation, special_tokens: Mapping[str, str], max_chars: int
) -> bytes:
    """What the process is asked."""
    request = {
        "template": template,
        "conversation": {field.name: getattr(conversation, field.name) for field in fields(conversation)},
        "special_tokens": dict(special_tokens),
        "max_chars": max_chars,
    }
    return json.dumps(request).encode()


class TemplateProcess:
    """The process, started when it is first needed and again after it had to be killed. It renders one request at a
    time, in the order of arrival, and is killed when the request takes too long or its client goes away.
    """

    def __init__(self, *, max_seconds: float = MAX_SECONDS, max_waiting: int = MAX_WAITING) -> None:
        self._max_seconds = max_seconds
        self._max_waiting = max_waiting
        self._num_waiting = 0
        self._turn = asyncio.Lock()
        self._process: Process | None = None
        self._is_closed = False

    async def render(self, request: bytes) -> str:
        """The text that an encoded request asks for.

        Raises:
            ChatTemplateError: the template is malformed, refuses the messages, or takes too much time or memory.
            RenderedTooLong: the template writes too much.
            QueueFull: too many requests wait for the process.
            Unavailable: the process does not start, or the router stops.
        """
        if self._num_waiting >= self._max_waiting:
            raise QueueFull(
                "too many requests with chat templates of their own wait to be rendered",
                retry_after_s=max(1.0, self._max_seconds),
            )
        self._num_waiting += 1
        try:
            async with self._turn:
                return await self._render(request)
        finally:
            self._num_waiting -= 1

    async def close(self) -> None:
        """Ends the process. Requests that wait for it fail."""
        self._is_closed = True
        process = self._discard()
        if process is not None:
            await process.wait()

    async def _render(self, request: bytes) -> str:
        process = await self._running()
        try:
            answer = await asyncio.wait_for(_ask(process, request), self._max_seconds)
        except TimeoutError:
            self._discard()
            raise ChatTemplateError(f"the chat template takes more than {self._max_seconds:g} s") from None
        except (EOFError, OSError):
            self._discard()
            if self._is_closed:
                raise Unavailable("the router stops") from None
            raise ChatTemplateError("the chat template needs too much memory or computing time") from None
        except BaseException:  # The client has gone: nobody waits for what the template still does.
            self._discard()
            raise
        return _read_answer(answer)

    async def _running(self) -> Process:
        process = self._process
        if process is not None and process.returncode is None:
            return process
        self._discard()
        if self._is_closed:
            raise Unavailable("the router stops")
        self._process = process = await _start(math.ceil(self._max_seconds))
        try:
            assert process.stdout is not None
            is_ready = await asyncio.wait_for(process.stdout.read(1), MAX_START_S) == READY
        except TimeoutError:
            is_ready = False
        except BaseException:
            self._discard()
            raise
        if not is_ready:
            self._discard()
            raise Unavailable("the process that renders chat templates does not start", retry_after_s=1.0)
        return process

    def _discard(self) -> Process | None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
        return process


async def _start(max_cpu_s: int) -> Process:
    """Starts the process with nothing of the router's: no environment but the time zone, no open files."""
    environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    if "TZ" in os.environ:
        environment["TZ"] = os.environ["TZ"]
    command = (sys.executable, "-P", "-m", "pagewire_router.text.template_worker", str(max_cpu_s))
    return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment)


async def _ask(process: Process, request: bytes) -> bytes:
    """Raises EOFError or OSError if the process ends."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(len(request).to_bytes(LENGTH_BYTES, "big") + request)
    await process.stdin.drain()
    head = await process.stdout.readexactly(LENGTH_BYTES)
    return await process.stdout.readexactly(int.from_bytes(head, "big"))


def _read_answer(answer: bytes) -> str:
    kind, content = answer[:1], answer[1:].decode()
    if kind == TEXT:
        return content
    raise RenderedTooLong(content) if kind == TOO_LONG else ChatTemplateError(content)
