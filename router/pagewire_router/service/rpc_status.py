"""Errors as gRPC statuses with google.rpc details, small enough for any peer's header limit."""

import re
from typing import NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2

from pagewire_router.errors import InvalidRequest, RouterError, status_code

DOMAIN = "pagewire"
MAX_MESSAGE_CHARS = 500
MAX_STATUS_BYTES = 2400
"""Base64 makes 3,200 of them; with the message beside them a status stays under 4 KB."""
UNSENDABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
DETAILS_KEY = "grpc-status-details-bin"


def to_status(error: RouterError) -> status_pb2.Status:
    """The status with its details: BadRequest violations as far as they fit, RetryInfo, ErrorInfo."""
    code: int = status_code(error).value[0]
    status = status_pb2.Status(code=code, message=_header_text(shorten(error.message, MAX_MESSAGE_CHARS)))
    _pack(status, error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        _pack(status, error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(error, InvalidRequest):
        _pack(status, _bad_request(error, MAX_STATUS_BYTES - status.ByteSize() - 64))
    return status


def _bad_request(error: InvalidRequest, max_bytes: int) -> error_details_pb2.BadRequest:
    bad_request = error_details_pb2.BadRequest()
    for violation in error.violations:
        entry = error_details_pb2.BadRequest.FieldViolation(
            field=shorten(violation.field, 100), description=shorten(violation.description, 300)
        )
        if bad_request.ByteSize() + entry.ByteSize() + 4 > max_bytes:
            break
        bad_request.field_violations.append(entry)
    return bad_request


async def abort(context: "grpc.aio.ServicerContext[bytes, bytes]", error: RouterError) -> NoReturn:
    """Ends a call with the error's status."""
    status = to_status(error)
    await context.abort(status_code(error), status.message, ((DETAILS_KEY, status.SerializeToString()),))


def shorten(text: str, max_chars: int) -> str:
    """The text, cut where it is too long, with escapes for what cannot be sent: lone surrogates and controls."""
    text = text if len(text) <= max_chars else text[: max_chars - 3] + "..."
    safe = UNSENDABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
    return safe if len(safe) <= max_chars else safe[: max_chars - 3] + "..."


def _header_text(text: str) -> str:
    """grpc-message is percent-encoded, three characters for each byte outside ASCII: such a text is cut shorter.

    The message in the details must be the same: clients' libraries compare them.
    """
    return text if text.isascii() else shorten(text, MAX_MESSAGE_CHARS // 6)


def _pack(status: status_pb2.Status, detail: message.Message) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)
