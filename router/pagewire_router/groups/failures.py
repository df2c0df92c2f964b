"""What clients are told when a shard group cannot go on with their request."""

from pagewire.v1 import shard_pb2

from pagewire_router.errors import (
    FieldViolation,
    GrammarFailed,
    GrammarTooCostly,
    InvalidRequest,
    NoFiniteLogits,
    ProcessorFailed,
    RequestFailed,
    RouterError,
    ShardLost,
    StatusCode,
    Unavailable,
)
from pagewire_router.request import Request
from pagewire_router.scheduling.grammars import Refusal

HAND_OVER_RETRY_S = 0.1
"""When a client that knows one address alone comes back: by then it may lead to the other router."""
RETRY_AFTER_S = 1.0
"""When to ask again for a grammar that a shard could not prepare for a reason of its own."""


def refusal_error(refusal: Refusal) -> RouterError:
    """The error of a request whose grammar a shard has refused."""
    field = _field(refusal.group.request)
    match refusal.code:
        case StatusCode.INVALID_ARGUMENT:
            return InvalidRequest([FieldViolation(field, refusal.message)])
        case StatusCode.RESOURCE_EXHAUSTED:
            return GrammarTooCostly(FieldViolation(field, refusal.message))
        case StatusCode.UNAVAILABLE:
            return Unavailable(f"{field}: {refusal.message}", retry_after_s=RETRY_AFTER_S)
        case _:
            return RequestFailed(f"{field}: the shard cannot prepare it: {refusal.message}")


def elsewhere(why: str, shard_loss_token: str = "") -> Unavailable:
    """The error of a request that its client resumes at another router.

    shard_loss_token: If a shard was lost while it ran the request: what the other router has to know of that.
    """
    message = f"{why}; another router goes on with the request"
    if shard_loss_token:
        return ShardLost(message, token=shard_loss_token, retry_after_s=HAND_OVER_RETRY_S)
    return Unavailable(message, retry_after_s=HAND_OVER_RETRY_S)


def failure_error(
    request: Request, failure: "shard_pb2.StopReason.ValueType", row_failure: shard_pb2.RowFailure | None = None
) -> RouterError:
    """The error of a request for which a shard could not sample a token.

    row_failure: what a logits processor said, if it was one.
    """
    if row_failure is not None:
        if row_failure.code == StatusCode.INVALID_ARGUMENT:
            return InvalidRequest([FieldViolation("sampling_params.extra_args", row_failure.message)])
        return ProcessorFailed(row_failure.message)
    if failure == shard_pb2.STOP_REASON_GRAMMAR:
        description = (
            "allows no token behind what has been generated, or has become more complex there than this server allows"
        )
        return GrammarFailed([FieldViolation(_field(request), description)])
    message = "the model gave no finite logits for the request's next token"
    if request.grammar:
        message += ", or its other parameters ban all tokens that its structured_outputs allow there"
    elif request.params.allowed_token_ids or request.bad_words:
        message += ", or allowed_token_ids, bad_words and min_tokens together leave none that may come there"
    return NoFiniteLogits(message)


def _field(request: Request) -> str:
    """The name of the field that held the request's grammar."""
    return f"{'beam_search' if request.beams else 'sampling'}_params.structured_outputs"
