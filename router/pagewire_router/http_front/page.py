"""GET /: a page to try the model on, and to see what the server does.

It is static, and asks for nothing but what this server serves. The figures it shows are those of /metrics.
"""

import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

import orjson

from pagewire_router.http_front.app import Handle, Route
from pagewire_router.http_front.exchange import Exchange
from pagewire_router.inference import Inference
from pagewire_router.metrics.request_metrics import Metrics

STATS = "/page/stats"
_FILES = (
    ("/", "index.html", b"text/html; charset=utf-8"),
    ("/page.css", "page.css", b"text/css; charset=utf-8"),
    ("/page_text.js", "page_text.js", b"text/javascript; charset=utf-8"),
    ("/page.js", "page.js", b"text/javascript; charset=utf-8"),
)
PAGES = tuple(path for path, _, _ in _FILES)
_HEADERS = (
    (b"cache-control", b"no-cache"),
    # The page has nothing from elsewhere, and no other page may show it.
    (
        b"content-security-policy",
        b"default-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
MAX_AGE_S = 0.5
"""Figures are gathered again when they are older than this, however many pages are open."""
_TOTALS = {
    "pagewire_requests_running": "requests_running",
    "pagewire_requests_queued": "requests_queued",
    "pagewire_kv_cache_usage_ratio": "kv_cache_usage",
}
_OF_GROUPS = {
    "pagewire_group_serving": "serving",
    "pagewire_group_requests_running": "requests_running",
    "pagewire_group_requests_queued": "requests_queued",
    "pagewire_group_kv_cache_usage_ratio": "kv_cache_usage",
}
_TOKENS = "pagewire_tokens_total"


def page_routes() -> Iterator[Route]:
    """The page. It needs no key: what it asks for does."""
    folder = files("pagewire_router.http_front") / "page_files"
    for path, name, content_type in _FILES:
        yield Route("GET", path, _file((folder / name).read_bytes(), content_type), needs_key=False)


def stats_route(metrics: Metrics, inference: Inference, now_s: Callable[[], float] = time.monotonic) -> Route:
    """The figures that the page shows, as JSON."""
    model = inference.get_model()
    latest: tuple[float, bytes] = (float("-inf"), b"")

    async def stats(exchange: Exchange, _body: bytes) -> None:
        nonlocal latest
        if now_s() - latest[0] > MAX_AGE_S:
            time_s = now_s()
            figures = {"model": model.name, "supports_chat": model.supports_chat, "time_s": time_s, **_figures(metrics)}
            latest = (time_s, orjson.dumps(figures))
        await exchange.answer(200, latest[1], [(b"cache-control", b"no-store")])

    return Route("GET", STATS, stats)


def _file(content: bytes, content_type: bytes) -> Handle:
    async def serve(exchange: Exchange, _body: bytes) -> None:
        await exchange.answer(200, content, _HEADERS, content_type=content_type)

    return serve


def _figures(metrics: Metrics) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            if sample.name in _TOTALS:
                figures[_TOTALS[sample.name]] = sample.value
            elif sample.name in _OF_GROUPS:
                group = groups.setdefault(sample.labels["group"], {"id": sample.labels["group"]})
                group[_OF_GROUPS[sample.name]] = sample.value
            elif sample.name == _TOKENS and sample.labels["kind"] == "generation":
                group = groups.setdefault(sample.labels["group"], {"id": sample.labels["group"]})
                group["tokens_generated"] = sample.value
    return {**figures, "groups": list(groups.values())}
