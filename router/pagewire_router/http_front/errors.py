"""Errors of the HTTP front, and the one table that maps the router's errors to HTTP statuses."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from pagewire_router.errors import (
    Aborted,
    DeadlineExceeded,
    GrammarFailed,
    GrammarTooCostly,
    InvalidRequest,
    ModelNotFound,
    QueueFull,
    RateLimited,
    RequestAlreadyExists,
    RequestTooLong,
    RouterError,
    ShardLost,
    Unauthenticated,
    Unavailable,
)

CLIENT_CLOSED_REQUEST = 499
"""The status that metrics and traces give a request whose client has gone. No client sees it."""
STATUSES: dict[type[RouterError], HTTPStatus] = {
    InvalidRequest: HTTPStatus.BAD_REQUEST,
    RequestTooLong: HTTPStatus.BAD_REQUEST,
    GrammarFailed: HTTPStatus.BAD_REQUEST,
    GrammarTooCostly: HTTPStatus.BAD_REQUEST,
    ModelNotFound: HTTPStatus.NOT_FOUND,
    RequestAlreadyExists: HTTPStatus.CONFLICT,
    QueueFull: HTTPStatus.TOO_MANY_REQUESTS,
    RateLimited: HTTPStatus.TOO_MANY_REQUESTS,
    DeadlineExceeded: HTTPStatus.GATEWAY_TIMEOUT,
    Unauthenticated: HTTPStatus.UNAUTHORIZED,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    ShardLost: HTTPStatus.SERVICE_UNAVAILABLE,
    Aborted: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""Errors that are not listed are ours: INTERNAL_SERVER_ERROR."""
_CODES: dict[type[RouterError], str] = {
    RequestTooLong: "context_length_exceeded",
    Unauthenticated: "invalid_api_key",
    RateLimited: "rate_limit_exceeded",
}
"""Codes that OpenAI's clients know; other errors have their `reason` in lower case."""
MIN_RETRY_AFTER_S = 1
"""Retry-After of a refusal that does not say when to come back."""

RenameField = Callable[[str], str]
"""Maps the path of a field of GenerateRequest to the name that the route has for it."""


class HttpError(Exception):
    """An error that a client of a route is told about."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            param: the field that is wrong; None: the error is not about a field.
            code: stable and machine-readable; None: there is none beside the status.
            details: what Anthropic's clients read beside the message; None: nothing.
        """
        super().__init__(message)
        self.status = int(status)
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s
        self.details = details

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers that go with the status."""
        if self.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
            retry_after_s = max(MIN_RETRY_AFTER_S, -int(-(self.retry_after_s or 0.0) // 1))
            return [(b"retry-after", b"%d" % retry_after_s)]
        if self.status == HTTPStatus.UNAUTHORIZED:
            return [(b"www-authenticate", b"Bearer")]
        return []


def wrong(param: str, description: str) -> HttpError:
    """The error of a field that is wrong: what it is, and what is accepted."""
    return HttpError(HTTPStatus.BAD_REQUEST, f"{param}: {description}", param=param, code="invalid_value")


def not_served(param: str) -> HttpError:
    """The error of a field, or of a value of it, that is not served."""
    return HttpError(
        HTTPStatus.BAD_REQUEST, f"{param}: is not served; leave it out", param=param, code="unsupported_parameter"
    )


def http_error(error: RouterError, rename: RenameField) -> HttpError:
    """The router's error as the client of a route is told."""
    message, param = error.message, None
    if isinstance(error, InvalidRequest | GrammarTooCostly) and error.violations:
        names = [rename(violation.field) for violation in error.violations]
        message = "; ".join(
            f"{name}: {violation.description}" for name, violation in zip(names, error.violations, strict=True)
        )
        param = names[0]
    elif isinstance(error, ModelNotFound):
        param = "model"
    return HttpError(
        STATUSES.get(type(error), HTTPStatus.INTERNAL_SERVER_ERROR),
        message,
        param=param,
        code=_CODES.get(type(error), error.reason.lower()),
        retry_after_s=error.retry_after_s,
    )
