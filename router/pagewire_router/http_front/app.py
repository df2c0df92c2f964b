"""The ASGI application: finds the route of a request, checks its key, and turns errors into answers.

No web framework stands between uvicorn and the routes: a dictionary finds them.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from pagewire_router.admission.call import Call
from pagewire_router.admission.credentials import Credentials
from pagewire_router.caller import Caller, Identity
from pagewire_router.errors import Unavailable
from pagewire_router.http_front.body import BodyReader, ClientGone, Receive
from pagewire_router.http_front.cors import Cors
from pagewire_router.http_front.error_bodies import openai_body
from pagewire_router.http_front.errors import CLIENT_CLOSED_REQUEST, HttpError, http_error
from pagewire_router.http_front.event_stream import Send
from pagewire_router.http_front.exchange import Exchange, Scope
from pagewire_router.inference import failure_of
from pagewire_router.metrics.http_metrics import HttpMetrics
from pagewire_router.timeline import TraceContext
from pagewire_router.tracing.call_trace import CallTrace

if TYPE_CHECKING:
    from pagewire_router.http_front.tracing import HttpTracing

Handle = Callable[[Exchange, bytes], Awaitable[None]]
"""Answers a request whose body has come."""
NOT_OPEN_RETRY_S = 1.0
"""When to come back to a service that is not open yet."""
OTHER_ROUTE = "other"
"""What metrics call paths that are no routes."""
CLOSE = (b"connection", b"close")
_CHARSET = re.compile(rb'charset="?([^\s";]+)', re.IGNORECASE)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path."""

    method: str
    path: str
    handle: Handle
    error_body: Callable[[HttpError, str], bytes] = openai_body
    needs_key: bool = True


class HttpApp:
    """Serves routes. Those that need a key are closed until open() has added them."""

    def __init__(
        self,
        metrics: HttpMetrics,
        *,
        paths: Iterable[str],
        why_closed: str,
        max_body_bytes: int,
        credentials: Credentials | None,
        cors: Cors,
        on_call: Callable[[], None],
        tracing: "HttpTracing | None",
    ) -> None:
        """
        Args:
            paths: all that open() will add.
            why_closed: what clients are told until then.
            on_call: called when a request has come.
        """
        self._metrics = metrics
        self._closed = frozenset(paths)
        self._why_closed = why_closed
        self._reader = BodyReader(max_body_bytes)
        self._credentials = credentials
        self._cors = cors
        self._on_call = on_call
        self._tracing = tracing
        self._routes: dict[str, dict[str, Route]] = {}
        self.is_draining = False
        """Answers tell their clients not to use the connection again."""
        self._prefixes = {path.partition("{")[0]: path for path in self._closed if path.endswith("}")}
        """What precedes the parameter at the end of a path, and the path."""

    def open(self, routes: Iterable[Route]) -> None:
        """Serves further routes from now on."""
        for route in routes:
            methods = self._routes.setdefault(route.path, {})
            methods[route.method] = route
            if route.method == "GET":
                methods["HEAD"] = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        arrival_s = time.monotonic()
        exchange = Exchange(scope, receive, send)
        exchange.extra_headers += self._cors.headers(exchange.headers)
        if self.is_draining:
            exchange.extra_headers.append(CLOSE)
        exchange.route = path = self._name_of(exchange.path)
        peer = _peer(scope.get("client"))
        self._metrics.begin(path)
        traced = None if self._tracing is None else self._tracing.start(exchange, scope, path, peer)
        try:
            await self._serve(exchange, peer, arrival_s, None if traced is None else traced.trace)
        except asyncio.CancelledError:
            if not exchange.is_client_gone:
                raise
        except ClientGone:
            exchange.is_client_gone = True
        finally:
            status = CLIENT_CLOSED_REQUEST if exchange.is_client_gone else exchange.status or 500
            latency_s = time.monotonic() - arrival_s
            self._metrics.end(path, status, latency_s, exchange.num_received_bytes, exchange.num_sent_bytes)
            if traced is not None:
                traced.finish(status, is_stream=exchange.is_stream)

    async def refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application of connections beyond the limit."""
        exchange = Exchange(scope, receive, send)
        exchange.extra_headers.append(CLOSE)
        exchange.route = path = self._name_of(exchange.path)
        route = self._routes.get(path, {}).get(exchange.method)
        error = HttpError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "too many connections are open (--http-max-connections)",
            code="too_many_connections",
            retry_after_s=NOT_OPEN_RETRY_S,
        )
        with suppress(ClientGone):
            await _answer_error(exchange, route, error)
        self._metrics.begin(path)
        self._metrics.end(path, error.status, 0.0, 0, exchange.num_sent_bytes)

    async def _serve(self, exchange: Exchange, peer: str, arrival_s: float, trace: CallTrace | None) -> None:
        route: Route | None = None
        try:
            route = self._route(exchange)
            if route is None:
                await exchange.answer(HTTPStatus.NO_CONTENT, b"", self._cors.preflight_headers(exchange.headers))
                return
            identity = self._identify(exchange) if route.needs_key else None
            exchange.call = Call(
                caller=Caller.of(peer, identity),
                arrival_s=arrival_s,
                trace_context=self._trace_context(exchange, trace),
                trace=trace,
            )
            if exchange.method == "POST":
                self._on_call()
                _check_type(exchange)
                await self._handle_body(route, exchange)
            else:
                await route.handle(exchange, b"")
        except (asyncio.CancelledError, ClientGone):
            raise
        except HttpError as error:
            await _answer_error(exchange, route, error)
        except Exception as error:
            failure = failure_of(error)
            await _answer_error(exchange, route, http_error(failure, exchange.rename))

    async def _handle_body(self, route: Route, exchange: Exchange) -> None:
        try:
            # No name here holds the body: the handler drops it when it is read.
            await route.handle(exchange, await exchange.read_body(self._reader))
        finally:
            self._reader.release(exchange.num_held_bytes, exchange.call.caller)

    def _name_of(self, path: str) -> str:
        """The path as the routes name it; OTHER_ROUTE: there is no such route."""
        if path in self._routes or path in self._closed:
            return path
        for prefix, named in self._prefixes.items():
            if path.startswith(prefix) and path != prefix:
                return named
        return OTHER_ROUTE

    def _route(self, exchange: Exchange) -> Route | None:
        """The route of a request; None: it asks what other origins may do. Raises HttpError, Unavailable."""
        methods = self._routes.get(exchange.route)
        if exchange.method == "OPTIONS" and self._cors.is_preflight(exchange.headers):
            return None
        if methods is None:
            if exchange.route in self._closed:
                raise Unavailable(self._why_closed, retry_after_s=NOT_OPEN_RETRY_S)
            raise HttpError(HTTPStatus.NOT_FOUND, f"there is no route {exchange.path[:200]!r}", code="unknown_route")
        route = methods.get(exchange.method)
        if route is None:
            exchange.extra_headers.append((b"allow", ", ".join(methods).encode()))
            message = f"{exchange.path} takes no {exchange.method[:20]}"
            raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, message, code="method_not_allowed")
        return route

    def _identify(self, exchange: Exchange) -> Identity | None:
        """Who asks, by the request's key or token; None if none are needed. Raises Unauthenticated."""
        if self._credentials is None:
            return None
        authorization = exchange.headers.get(b"authorization", b"")
        if not authorization and (key := exchange.headers.get(b"x-api-key")):
            authorization = b"Bearer " + key
        # Keys are compared as the file has them, in UTF-8.
        return self._credentials.check(authorization.decode(errors="replace"))

    def _trace_context(self, exchange: Exchange, trace: CallTrace | None) -> TraceContext | None:
        if trace is not None:
            return trace.timeline.trace_context
        traceparent = exchange.headers.get(b"traceparent")
        if self._tracing is not None or traceparent is None:
            return None
        tracestate = exchange.headers.get(b"tracestate", b"")
        return TraceContext(traceparent.decode("latin-1"), tracestate.decode("latin-1"))


def _check_type(exchange: Exchange) -> None:
    """Refuses bodies that are no JSON. A page of another origin may send other types without being asked for a key."""
    content_type, _, parameters = exchange.headers.get(b"content-type", b"").partition(b";")
    content_type = content_type.strip().lower()
    if content_type != b"application/json" and not content_type.endswith(b"+json"):
        message = "the body must be JSON: send 'content-type: application/json'"
        raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message, code="unsupported_media_type")
    charset = _CHARSET.search(parameters)
    if charset is not None and charset[1].lower() not in (b"utf-8", b"utf8", b"us-ascii"):
        message = "the body is in another charset, which is not served: send it in UTF-8"
        raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message, code="unsupported_media_type")
    transfer = exchange.headers.get(b"transfer-encoding", b"chunked").strip().lower()
    if transfer != b"chunked":
        message = "the body has a transfer-encoding other than chunked, which is not served"
        raise HttpError(HTTPStatus.BAD_REQUEST, message, code="unsupported_transfer_encoding")
    encoding = exchange.headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding != b"identity":
        message = "the body is compressed, which is not served: send it as it is"
        raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message, code="unsupported_media_type")


async def _answer_error(exchange: Exchange, route: Route | None, error: HttpError) -> None:
    if exchange.status is not None:
        # uvicorn closes the connection of an answer without an end, which tells the client.
        _log.error("An answer that had begun could not be finished: %s", error.message)
        return
    if exchange.headers.get(b"expect") is not None and exchange.num_received_bytes == 0:
        # The client has not sent the body, and need not send it now: what it sends next would be taken for it.
        exchange.extra_headers.append(CLOSE)
    body = (openai_body if route is None else route.error_body)(error, exchange.request_id)
    await exchange.answer(error.status, body, error.headers)


def _peer(client: tuple[str, int] | None) -> str:
    """The client's address as gRPC writes it."""
    if client is None:
        return "unix:"
    host, port = client
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
