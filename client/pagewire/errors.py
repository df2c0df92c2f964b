"""The client's errors, and the one table that maps gRPC statuses to them.

PagewireError
+-- InvalidRequest          a parameter is missing, malformed or out of range; .violations says which (a ValueError too)
+-- NotFound                the server serves another model
+-- AlreadyExists           the request id belongs to a request that is alive
+-- QueueFull               the server refuses for now; come back after .retry_after_s
+-- DeadlineExceeded        the timeout has passed
+-- Unavailable             nobody answers, or the server starts, drains or lost its shards; .retry_after_s if known
+-- Aborted                 the request was ended from outside
+-- Cancelled               the client was closed, before the request or while it ran
+-- Unauthenticated         the server wants other credentials
+-- ServerError             the server failed, or does not speak this protocol
+-- StartupError            a server that was started here did not come up

Callers never see a grpc.RpcError: it is the __cause__ of what they see.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pagewire.proxies import proxy_in_use

if TYPE_CHECKING:
    import grpc


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One thing wrong with a request."""

    field: str
    """Path of the field, such as "sampling_params.top_p"."""
    description: str
    """What was given and what is accepted."""


class PagewireError(Exception):
    """Base class of the errors that this package raises on purpose."""

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        """Stable and machine-readable, from the server's ErrorInfo; empty if it sent none."""
        self.retry_after_s = retry_after_s
        """Seconds to wait before trying again, from the server's RetryInfo; None if it sent none."""
        self.metadata = dict(metadata or {})
        """What else the server's ErrorInfo says."""


class InvalidRequest(PagewireError, ValueError):
    """A parameter is missing, malformed or out of range."""

    def __init__(self, message: str, *, violations: tuple[FieldViolation, ...] = (), **details: Any) -> None:
        super().__init__(message, **details)
        self.violations = violations

    @classmethod
    def of_field(cls, field: str, description: str) -> "InvalidRequest":
        """Returns an error about one field, found before anything was sent."""
        violation = FieldViolation(field, description)
        return cls(f"{field}: {description}", violations=(violation,), reason="INVALID_REQUEST")


class NotFound(PagewireError):
    """The server serves another model."""


class AlreadyExists(PagewireError):
    """The request id belongs to a request that is alive."""


class QueueFull(PagewireError):
    """The server refuses for now; come back after retry_after_s."""


class DeadlineExceeded(PagewireError):
    """The timeout has passed."""


class Unavailable(PagewireError):
    """Nobody answers, or the server starts, drains or lost its shards."""


class Aborted(PagewireError):
    """The request was ended from outside."""


class Cancelled(PagewireError):
    """The client was closed, before the request or while it ran."""


class Unauthenticated(PagewireError):
    """The server wants other credentials."""


class ServerError(PagewireError):
    """The server failed, or does not speak this protocol."""


class StartupError(PagewireError):
    """A server that was started here did not come up. The message is the server's own."""


ERRORS: dict[str, type[PagewireError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "OUT_OF_RANGE": InvalidRequest,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "RESOURCE_EXHAUSTED": QueueFull,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "UNAVAILABLE": Unavailable,
    "ABORTED": Aborted,
    "CANCELLED": Unavailable,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": Unauthenticated,
}
"""Error classes by name of the gRPC status; any other status is a ServerError.

A call that its client cancels raises CancelledError, not a status: CANCELLED comes from a server, or a proxy, that
dropped the call.
"""


@dataclass(slots=True)
class _Details:
    """The google.rpc details of a status; fields of absent details are empty."""

    violations: tuple[FieldViolation, ...] = ()
    reason: str = ""
    retry_after_s: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def from_rpc_error(error: "grpc.aio.AioRpcError", target: str) -> PagewireError:
    """Returns the error that a caller gets for a failed call to the server at `target`."""
    code = error.code().name
    details = _read_details(error)
    message = error.details() or code
    kind = ERRORS.get(code, ServerError)
    if kind is QueueFull and details.retry_after_s is None and not details.reason:
        # gRPC itself says RESOURCE_EXHAUSTED of a message over the size limit: coming back would not help.
        kind = InvalidRequest
    elif kind is ServerError:
        message = f"the server at {target} failed ({code}): {message}"
    elif kind is Unavailable and not details.reason:
        proxy = proxy_in_use(target)
        through = "" if proxy is None else f" through the proxy {proxy} (the variable no_proxy exempts hosts)"
        message = f"no pagewire server answers at {target}{through}: {message}"
    if kind is InvalidRequest:
        return InvalidRequest(message, violations=details.violations, reason=details.reason)
    return kind(message, reason=details.reason, retry_after_s=details.retry_after_s, metadata=details.metadata)


def _read_details(error: "grpc.aio.AioRpcError") -> _Details:
    from google.protobuf.message import DecodeError
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    details = _Details()
    try:
        status = rpc_status.from_call(error)
    except (ValueError, DecodeError):  # the details contradict the status, or are not google.rpc's: the status holds
        return details
    for packed in status.details if status is not None else ():
        if packed.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad_request = error_details_pb2.BadRequest.FromString(packed.value)
            details.violations = tuple(FieldViolation(v.field, v.description) for v in bad_request.field_violations)
        elif packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = error_details_pb2.RetryInfo.FromString(packed.value).retry_delay
            details.retry_after_s = delay.seconds + delay.nanos * 1e-9
        elif packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo.FromString(packed.value)
            details.reason, details.metadata = info.reason, info.metadata
    return details
