"""Sends requests to servers of OpenAI's API: pagewire's, vLLM's, and others.

An answer's body is recorded as it comes. A part of it that holds several events gives all of them its time.
"""

import asyncio
import json
import ssl
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, cast
from urllib.parse import urlsplit

from pagewire.bench.metrics import RequestOutcome
from pagewire.bench.sending import Recording
from pagewire.errors import InvalidRequest, Unavailable

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
_DATA, _DONE = b"data:", b"[DONE]"


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """A server of OpenAI's API."""

    base_url: str
    model: str
    endpoint: str = COMPLETIONS
    is_chat: bool = False
    """Prompts are messages of a conversation."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of every request."""
    api_key: str | None = None
    tls_ca: str | None = None
    """PEM file of the authorities that are trusted; None: the system's."""
    tls_cert: str | None = None
    tls_key: str | None = None
    timeout_s: float | None = None
    """Timeout of each request; None: no limit."""
    needs_token_ids: bool = False
    """Asks for the token ids of outputs, by which conversations continue."""

    def connect(self) -> "HttpSender":
        """See Target."""
        return HttpSender(self)

    def tls_context(self) -> ssl.SSLContext | None:
        """The context of connections; None: they are not encrypted."""
        if urlsplit(self.base_url).scheme != "https":
            return None
        context = ssl.create_default_context(cafile=self.tls_ca)
        if self.tls_cert is not None:
            context.load_cert_chain(self.tls_cert, self.tls_key)
        return context


class _Connection(asyncio.Protocol):
    """One connection, which carries one exchange at a time."""

    def __init__(self, parser_type: Any) -> None:
        self._parser_type = parser_type
        self.transport: asyncio.Transport
        self._recording: Recording | None = None
        self._ended: asyncio.Future[None] | None = None
        self.status = 0
        """Of the answer."""
        self.is_reusable = False
        """The connection stays open for another exchange."""

    async def exchange(self, request: bytes, recording: Recording) -> None:
        """Sends a request and records the body of the answer. Raises OSError if the connection is lost."""
        self._parser = self._parser_type(self)
        self._recording, self._ended = recording, asyncio.get_running_loop().create_future()
        self.transport.write(request)
        await self._ended

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are none by their class.

    def data_received(self, data: bytes) -> None:
        self._time_s = perf_counter()
        try:
            self._parser.feed_data(data)
        except Exception as error:
            self._end(ConnectionError(f"the answer is no HTTP: {error}"))
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(ConnectionError(f"the connection was lost{f': {exc}' if exc else ''}"))

    def _end(self, error: Exception | None) -> None:
        if self._ended is not None and not self._ended.done():
            if error is None:
                self._ended.set_result(None)
            else:
                self._ended.set_exception(error)

    # httptools.HttpResponseParser

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        assert self._recording is not None
        self._recording.times_s.append(self._time_s)
        self._recording.payloads.append(body)

    def on_message_complete(self) -> None:
        self.is_reusable = self._parser.should_keep_alive()
        self._end(None)


class HttpSender:
    """See Sender."""

    def __init__(self, target: HttpTarget) -> None:
        try:
            import httptools
        except ImportError:
            raise InvalidRequest("servers over HTTP need httptools: pip install 'pagewire[bench]'") from None
        url = urlsplit(target.base_url)
        if url.scheme not in ("http", "https") or url.hostname is None:
            raise InvalidRequest(f"--base-url: {target.base_url!r} is no URL such as http://localhost:8000")
        self._parser_type = httptools.HttpResponseParser
        self._target = target
        self._host, self._port = url.hostname, url.port or (443 if url.scheme == "https" else 80)
        self._path = url.path.rstrip("/")
        self._tls = target.tls_context()
        self._idle: deque[_Connection] = deque()
        headers = [f"host: {url.netloc.rpartition('@')[2]}", "content-type: application/json", "accept: */*"]
        if target.api_key:
            headers.append(f"authorization: Bearer {target.api_key}")
        self._headers = "".join(f"{header}\r\n" for header in headers)

    def serialize(self, content: Any, max_tokens: int) -> bytes:
        """See Sender."""
        target = self._target
        prompt: dict[str, Any] = {"prompt": content}
        if target.is_chat:
            prompt = {"messages": [{"role": "user", "content": content}] if isinstance(content, str) else content}
        body = {
            "model": target.model,
            **prompt,
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"return_token_ids": True} if target.needs_token_ids and not target.is_chat else {}),
            **target.fields,
        }
        return self._request("POST", target.endpoint, json.dumps(body).encode())

    def _request(self, method: str, path: str, body: bytes) -> bytes:
        head = f"{method} {self._path}{path} HTTP/1.1\r\n{self._headers}content-length: {len(body)}\r\n\r\n"
        return head.encode() + body

    async def send(self, request: bytes, recording: Recording) -> None:
        """See Sender."""
        try:
            async with asyncio.timeout(self._target.timeout_s):
                status = await self._exchange(request, recording)
        except TimeoutError:
            recording.error = "the request took too long"
        except OSError as error:
            recording.error = str(error)
        else:
            if status != 200:
                recording.error = f"HTTP {status}: {b''.join(recording.payloads)[:200].decode(errors='replace')}"
                recording.payloads, recording.times_s = [], []

    async def _exchange(self, request: bytes, recording: Recording) -> int:
        """Sends a request over a connection that is free, or a new one; returns the status of the answer."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                break
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(
                lambda: _Connection(self._parser_type), self._host, self._port, ssl=self._tls
            )
        try:
            await connection.exchange(request, recording)
        except BaseException:
            connection.transport.abort()
            raise
        if connection.is_reusable:
            self._idle.append(connection)
        else:
            connection.transport.close()
        return connection.status

    async def ask(self, method: str, path: str, fields: Mapping[str, Any] | None = None) -> Any:
        """The answer to a request that is no stream. Raises Unavailable."""
        recording = Recording()
        body = b"" if fields is None else json.dumps(fields).encode()
        try:
            status = await self._exchange(self._request(method, path, body), recording)
            if status == 200:
                return json.loads(b"".join(recording.payloads))
            reason = f"HTTP {status}"
        except (OSError, ValueError) as error:
            reason = str(error)
        raise Unavailable(f"{self._target.base_url}{path}: {reason}")

    def outcome(self, recording: Recording, origin_s: float) -> RequestOutcome:
        """See Sender."""
        times_s: list[float] = []
        known_tokens: list[int | None] = []
        texts: list[str] = []
        first_s: float | None = None
        usage: Mapping[str, Any] = {}
        error = recording.error
        for time_s, event in _events(recording):
            usage = event.get("usage") or usage
            if "error" in event:
                error = error or str(event["error"])[:200]
            for choice in event.get("choices") or ():
                first_s = time_s if first_s is None else first_s
                text = _text(choice)
                if text:
                    texts.append(text)
                    times_s.append(time_s - origin_s)
                    known_tokens.append(len(choice["token_ids"]) if choice.get("token_ids") else None)
        num_tokens = int(usage.get("completion_tokens") or sum(count or 1 for count in known_tokens))
        if not times_s and num_tokens and first_s is not None:  # Tokens without text.
            times_s, known_tokens = [first_s - origin_s], [None]
        details = usage.get("prompt_tokens_details") or {}
        return RequestOutcome(
            start_s=recording.start_s - origin_s,
            end_s=recording.end_s - origin_s,
            num_prompt_tokens=int(usage.get("prompt_tokens") or 0),
            num_cached_tokens=int(details.get("cached_tokens") or 0),
            message_times_s=tuple(times_s),
            message_tokens=_shares(num_tokens, known_tokens),
            text="".join(texts),
            error=error,
        )

    def continued(self, content: Any, recording: Recording, added: str | list[int]) -> Any:
        """See Sender."""
        choices = [choice for _, event in _events(recording) for choice in event.get("choices") or ()]
        if self._target.is_chat:
            messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
            answer = {"role": "assistant", "content": "".join(map(_text, choices))}
            return [*messages, answer, {"role": "user", "content": added}]
        output = [token_id for choice in choices for token_id in choice.get("token_ids") or ()]
        return [*content, *output, *added]

    async def close(self) -> None:
        """See Sender."""
        for connection in self._idle:
            connection.transport.close()
        self._idle.clear()
        await asyncio.sleep(0)


def _events(recording: Recording) -> Iterator[tuple[float, dict[str, Any]]]:
    """The events of a stream, each with the time of the part of the body that completed it."""
    rest = b""
    for time_s, payload in zip(recording.times_s, recording.payloads, strict=True):
        *lines, rest = (rest + payload).split(b"\n")
        for line in lines:
            if line.startswith(_DATA) and (data := line.removeprefix(_DATA).strip()) != _DONE:
                with suppress(ValueError):
                    event = json.loads(data)
                    if isinstance(event, dict):
                        yield time_s, event


def _text(choice: Mapping[str, Any]) -> str:
    """What a choice of a chunk says, whether it is content, reasoning or a call."""
    if "delta" not in choice:
        return str(choice.get("text") or "")
    delta = choice["delta"]
    calls = "".join(str((call.get("function") or {}).get("arguments") or "") for call in delta.get("tool_calls") or ())
    return str(delta.get("content") or "") + str(delta.get("reasoning_content") or delta.get("reasoning") or "") + calls


def _shares(num_tokens: int, known: list[int | None]) -> tuple[int, ...]:
    """The tokens of each message: those that are known, or all of them dealt out evenly."""
    if known and all(count is not None for count in known) and sum(count or 0 for count in known) == num_tokens:
        return tuple(count or 0 for count in known)
    num = len(known)
    return tuple((number + 1) * num_tokens // num - number * num_tokens // num for number in range(num))
