"""The shard's errors as gRPC statuses."""

from typing import NoReturn

from pagewire_common.rpc_status import AbortableContext, abort_with, new_status

from pagewire_shard.errors import LeaseHeld, ShardError, ShardUnavailable, status_code

DOMAIN = "pagewire.v1.Shard"
RETRY_UNAVAILABLE_S = 1.0


async def abort(context: AbortableContext, error: ShardError) -> NoReturn:
    """Ends a call with the error's status and its details."""
    code = status_code(error)
    metadata, retry_after_s = None, None
    if isinstance(error, LeaseHeld):
        metadata = {"holder": error.holder, "remaining_ms": str(error.remaining_ms)}
        retry_after_s = error.remaining_ms / 1000
    elif isinstance(error, ShardUnavailable):
        retry_after_s = RETRY_UNAVAILABLE_S
    status = new_status(
        code, error.message, reason=error.reason, domain=DOMAIN, metadata=metadata, retry_after_s=retry_after_s
    )
    await abort_with(context, code, status)
