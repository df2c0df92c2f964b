"""The HTTP front as a whole: application, routes and server."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from pagewire_common.listen_address import host_of

from pagewire_router.admission.credentials import Credentials
from pagewire_router.config import RouterConfig
from pagewire_router.http_front.app import OTHER_ROUTE, HttpApp
from pagewire_router.http_front.connection_limit import ConnectionLimit, allowed_connections
from pagewire_router.http_front.cors import Cors
from pagewire_router.http_front.http_server import HttpServer
from pagewire_router.http_front.page import PAGES, STATS, page_routes, stats_route
from pagewire_router.http_front.routes import ALL_PATHS, PATHS, POST_PATHS, model_routes, open_routes
from pagewire_router.http_front.tls import tls_context
from pagewire_router.inference import Inference
from pagewire_router.metrics.http_metrics import HttpMetrics
from pagewire_router.metrics.request_metrics import Metrics
from pagewire_router.output.pacer import Pacer
from pagewire_router.parsing.choice import OutputParsers
from pagewire_router.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


def metrics_of_routes(*, has_page: bool) -> HttpMetrics:
    """The metrics of everything that is served, with or without the page."""
    return HttpMetrics((*ALL_PATHS, *((*PAGES, STATS) if has_page else ()), OTHER_ROUTE), POST_PATHS)


class HttpFront:
    """Serves the routes on one port."""

    def __init__(
        self,
        config: RouterConfig,
        metrics: Metrics,
        credentials: Credentials | None,
        pacer: Pacer,
        is_ready: Callable[[], bool],
        tracer: "Tracer | None",
    ) -> None:
        """
        Args:
            pacer: paces the writes of streams.
            is_ready: whether a new request would run.
            tracer: None: requests are not traced here.
        """
        self._config = config
        self._pacer = pacer
        self._metrics = metrics
        self._http_metrics = metrics_of_routes(has_page=config.http_page)
        metrics.add(self._http_metrics, self._http_metrics.rendered)
        tracing = None
        if tracer is not None:
            from pagewire_router.http_front.tracing import HttpTracing

            tracing = HttpTracing(tracer, f"{host_of(config.listen)}:{config.http_port}")
        self._app = HttpApp(
            self._http_metrics,
            paths=(*PATHS, STATS) if config.http_page else PATHS,
            why_closed="the router looks for shards",
            max_body_bytes=config.http_max_body_bytes,
            credentials=credentials,
            cors=Cors(config.http_cors_origins),
            on_call=pacer.on_call,
            tracing=tracing,
        )
        self._app.open(open_routes(is_ready))
        if config.http_page:
            self._app.open(page_routes())
        self._server: HttpServer | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens; returns the port, which the system picks for 0. Raises OSError, TlsError."""
        config = self._config
        context = None
        if config.tls_cert is not None and config.tls_key is not None:
            context = tls_context(config.tls_cert, config.tls_key, config.tls_client_ca)
        limit = ConnectionLimit(allowed_connections(config.http_max_connections), self._app.refuse)
        self._server = HttpServer(self._app, context, limit, self._http_metrics)
        return await self._server.start(host, port)

    def open(self, inference: Inference, tokenizer: Tokenizer | None) -> None:
        """Serves the routes of the model from now on.

        Args:
            tokenizer: None if the model came without one.
        """
        parsers = None
        if tokenizer is not None:
            config = self._config
            parsers = OutputParsers.of_model(tokenizer, config.tool_call_parser, config.reasoning_parser)
        if self._config.http_page:
            self._app.open([stats_route(self._metrics, inference)])
        self._app.open(model_routes(inference, self._pacer, tokenizer, parsers if parsers and parsers.format else None))

    def drain(self) -> None:
        """Has clients leave: their connections are closed now, or with the answers to their requests."""
        self._app.is_draining = True
        if self._server is not None:
            self._server.drain()

    async def stop(self) -> None:
        """Ends everything, after a last moment for the answers to requests that have ended."""
        if self._server is not None:
            await self._server.stop()
