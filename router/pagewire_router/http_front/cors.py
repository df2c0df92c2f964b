"""Cross-origin requests: which pages of browsers may call the routes."""

from collections.abc import Mapping, Sequence

Headers = list[tuple[bytes, bytes]]
ANY = "*"
MAX_AGE_S = 600


class Cors:
    """The origins that may call. Without any, no header is sent, and browsers let no other origin call."""

    def __init__(self, origins: Sequence[str]) -> None:
        """origins: such as https://example.org; "*": all."""
        self._origins = frozenset(origin.encode() for origin in origins)
        self._is_any = ANY in origins

    def headers(self, request: Mapping[bytes, bytes]) -> Headers:
        """Headers of the answer to a request."""
        origin = request.get(b"origin")
        if not self._origins or origin is None or not (self._is_any or origin in self._origins):
            return []
        return [
            (b"access-control-allow-origin", b"*" if self._is_any else origin),
            (b"access-control-expose-headers", b"x-request-id, retry-after"),
            (b"vary", b"origin"),
        ]

    def is_preflight(self, request: Mapping[bytes, bytes]) -> bool:
        """Whether a browser asks, by OPTIONS, if it may send a request."""
        return bool(self._origins) and b"origin" in request and b"access-control-request-method" in request

    def preflight_headers(self, request: Mapping[bytes, bytes]) -> Headers:
        """What it is told beside headers()."""
        if not self.headers(request):
            return []
        return [
            (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
            (b"access-control-allow-headers", request.get(b"access-control-request-headers", b"")),
            (b"access-control-max-age", b"%d" % MAX_AGE_S),
        ]
