"""The router's errors as gRPC statuses."""

from typing import NoReturn

import grpc
from pagewire_common.rpc_status import AbortableContext, abort_with, new_status

from pagewire_router.errors import InvalidRequest, RouterError, ShardLost, status_code

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
        metadata={"shard_loss_token": error.token} if isinstance(error, ShardLost) else None,
        retry_after_s=error.retry_after_s,
        violations=((violation.field, violation.description) for violation in violations),
    )
    await abort_with(context, code, status)


async def end_with(context: AbortableContext, error: RouterError) -> None:
    """Ends a call as abort() does, but returns. To be called last in a handler.

    gRPC keeps the exception that abort() raises with the call, and the frames in its traceback hold the call. The cycle
    would stay until the garbage collector runs, so the traceback is cleared.
    """
    try:
        await abort(context, error)
    except grpc.aio.AbortError as aborted:
        aborted.__traceback__ = None
