"""What clients are told when a shard group cannot go on with their request."""

from pagewire.v1 import shard_pb2

from pagewire_router.errors import (
    FieldViolation,
    GrammarFailed,
    GrammarTooCostly,
    InvalidRequest,
    NoFiniteLogits,
    RequestFailed,
    RouterError,
    StatusCode,
)
from pagewire_router.request import Request
from pagewire_router.scheduling.grammars import Refusal

FIELD = "sampling_params.structured_outputs"


def refusal_error(refusal: Refusal) -> RouterError:
    """The error of a request whose grammar a shard has refused."""
    match refusal.code:
        case StatusCode.INVALID_ARGUMENT:
            return InvalidRequest([FieldViolation(FIELD, refusal.message)])
        case StatusCode.RESOURCE_EXHAUSTED:
            return GrammarTooCostly(f"{FIELD}: {refusal.message}")
        case _:
            return RequestFailed(f"{FIELD}: the shard cannot prepare it: {refusal.message}")


def failure_error(request: Request, failure: "shard_pb2.StopReason.ValueType") -> RouterError:
    """The error of a request for which a shard could not sample a token."""
    if failure == shard_pb2.STOP_REASON_GRAMMAR:
        description = (
            "allows no token behind what has been generated, or has become more complex there than this server allows"
        )
        return GrammarFailed([FieldViolation(FIELD, description)])
    message = "the model gave no finite logits for the request's next token"
    if request.grammar:
        message += ", or its other parameters ban all tokens that its structured_outputs allow there"
    elif request.params.allowed_token_ids or request.bad_words:
        message += ", or allowed_token_ids, bad_words and min_tokens together leave none that may come there"
    return NoFiniteLogits(message)
