"""The router's errors as gRPC statuses."""

from typing import NoReturn

import grpc
from pagewire_common.rpc_status import AbortableContext, abort_with, new_status

from pagewire_router.errors import InvalidRequest, RouterError, status_code

DOMAIN = "pagewire"


async def abort(context: AbortableContext, error: RouterError) -> NoReturn:
    """Ends a call with the error's status and its details."""
    code = grpc.StatusCode[status_code(error).name]
    violations = error.violations if isinstance(error, InvalidRequest) else ()
    status = new_status(
        code,
        error.message,
        reason=error.reason,
        domain=DOMAIN,
        retry_after_s=error.retry_after_s,
        violations=((violation.field, violation.description) for violation in violations),
    )
    await abort_with(context, code, status)


async def end_with(context: AbortableContext, error: RouterError) -> None:
    """abort() as a handler's last act, which returns: gRPC sees to it that nothing more is sent.

    gRPC keeps the exception that abort() raises with the call. The frames it went through hold the call in their turn,
    so that the two and all that belongs to them would stay until the garbage collector comes.
    """
    try:
        await abort(context, error)
    except grpc.aio.AbortError as aborted:
        aborted.__traceback__ = None
