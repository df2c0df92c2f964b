"""Errors as gRPC statuses with google.rpc details, small enough for any peer's header limit."""

from collections.abc import Iterable, Mapping
from typing import NoReturn, Protocol

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2

from pagewire_common.sendable_text import shorten

MAX_MESSAGE_CHARS = 500
MAX_FIELD_CHARS = 100
"""Longest field name of a violation."""
MAX_VALUE_CHARS = 300
"""Longest description of a violation, and longest value of the metadata."""
MAX_STATUS_BYTES = 2400
"""Base64 makes 3,200 of them; with the message beside them a status stays under 4 KB."""
DETAILS_KEY = "grpc-status-details-bin"


class AbortableContext(Protocol):
    """The part of a call's context that is used here."""

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: tuple[tuple[str, bytes], ...] = ()
    ) -> NoReturn:
        """Ends the call."""


def new_status(
    code: grpc.StatusCode,
    text: str,
    *,
    reason: str,
    domain: str,
    metadata: Mapping[str, str] | None = None,
    retry_after_s: float | None = None,
    violations: Iterable[tuple[str, str]] = (),
) -> status_pb2.Status:
    """A status with google.rpc details: ErrorInfo, and RetryInfo and BadRequest where there is something to say.

    Args:
        reason: of the ErrorInfo, with the domain and the metadata: stable and machine-readable.
        retry_after_s: when to come back.
        violations: fields and what is wrong with them. Those that do not fit are left out.
    """
    number: int = code.value[0]
    status = status_pb2.Status(code=number, message=_header_text(shorten(text, MAX_MESSAGE_CHARS)))
    values = {key: shorten(value, MAX_VALUE_CHARS) for key, value in (metadata or {}).items()}
    _pack(status, error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=values))
    if retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(retry_after_s * 1000))
        _pack(status, error_details_pb2.RetryInfo(retry_delay=delay))
    bad_request = _bad_request(violations, MAX_STATUS_BYTES - status.ByteSize() - 64)
    if bad_request.field_violations:
        _pack(status, bad_request)
    return status


async def abort_with(context: AbortableContext, code: grpc.StatusCode, status: status_pb2.Status) -> NoReturn:
    """Ends a call with a status."""
    await context.abort(code, status.message, ((DETAILS_KEY, status.SerializeToString()),))


def _bad_request(violations: Iterable[tuple[str, str]], max_bytes: int) -> error_details_pb2.BadRequest:
    bad_request = error_details_pb2.BadRequest()
    for field, description in violations:
        entry = error_details_pb2.BadRequest.FieldViolation(
            field=shorten(field, MAX_FIELD_CHARS), description=shorten(description, MAX_VALUE_CHARS)
        )
        if bad_request.ByteSize() + entry.ByteSize() + 4 > max_bytes:
            break
        bad_request.field_violations.append(entry)
    return bad_request


def _header_text(text: str) -> str:
    """grpc-message is percent-encoded, three characters for each byte outside ASCII: such a text is cut shorter.

    The message in the details must be the same: clients' libraries compare them.
    """
    return text if text.isascii() else shorten(text, MAX_MESSAGE_CHARS // 6)


def _pack(status: status_pb2.Status, detail: message.Message) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)
