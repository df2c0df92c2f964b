"""Ends a call with one of our errors: its status, and google.rpc details that a program can read."""

from typing import NoReturn, Protocol

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from pagewire_shard.errors import LeaseHeld, ShardError, ShardUnavailable, status_code

ERROR_DOMAIN = "pagewire.v1.Shard"
MAX_MESSAGE_CHARS = 1000
"""Details travel as HTTP/2 trailers, which peers limit to 8 KB by default."""
RETRY_UNAVAILABLE_MS = 1000


class AbortableContext(Protocol):
    """The one method of a call's context that is used here."""

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: tuple[tuple[str, bytes], ...] = ()
    ) -> NoReturn:
        """Ends the call."""


async def abort(context: AbortableContext, error: ShardError) -> NoReturn:
    """Ends the call with the error."""
    code = status_code(error)
    message = _sendable(error.message)
    status = status_pb2.Status(code=code.value[0], message=message, details=_details(error))
    await context.abort(code, message, (("grpc-status-details-bin", status.SerializeToString()),))


def _sendable(text: str) -> str:
    """The text, cut where it is too long, in ASCII: others are percent-encoded, and some cannot be sent at all."""
    safe = text[:MAX_MESSAGE_CHARS].encode("ascii", "backslashreplace").decode()
    return "".join(char if char.isprintable() else " " for char in safe)[:MAX_MESSAGE_CHARS]


def _details(error: ShardError) -> list[any_pb2.Any]:
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN)
    details = [info]
    if isinstance(error, LeaseHeld):
        info.metadata["holder"] = _sendable(error.holder)
        info.metadata["remaining_ms"] = str(error.remaining_ms)
        details.append(_retry_after(error.remaining_ms))
    elif isinstance(error, ShardUnavailable):
        details.append(_retry_after(RETRY_UNAVAILABLE_MS))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return packed


def _retry_after(delay_ms: int) -> error_details_pb2.RetryInfo:
    return error_details_pb2.RetryInfo(
        retry_delay=duration_pb2.Duration(seconds=delay_ms // 1000, nanos=delay_ms % 1000 * 1_000_000)
    )
