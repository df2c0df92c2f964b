"""The router's errors, and the one table that maps them to gRPC statuses.

RouterError
+-- InvalidRequest          a field is missing, malformed or out of range
+-- RequestTooLong          the prompt does not fit the context or the pool
+-- ModelNotFound           another model was asked for
+-- RequestAlreadyExists    the id belongs to a request that is alive
+-- QueueFull               the queue is full, or too long for the deadline: come back later
+-- DeadlineExceeded        the request's deadline has passed
+-- Unauthenticated         the call has no API key, or one that is not known
+-- Unavailable             no shard group serves, or the router drains
+-- Aborted                 the request was ended from outside
+-- RequestFailed           the server cannot compute this request
    +-- StepFailed          steps with this request fail, also when it runs alone
    +-- NoFiniteLogits      the model gave no finite logits for the request's next token
"""

from dataclasses import dataclass

import grpc


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One thing wrong with a request."""

    field: str
    """Path within GenerateRequest, such as "sampling_params.top_p"."""
    description: str
    """What was given and what is accepted."""


class RouterError(Exception):
    """An error a client is told about. `reason` is stable and machine-readable."""

    reason = "INTERNAL"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class InvalidRequest(RouterError):
    """A field is missing, malformed or out of range."""

    reason = "INVALID_REQUEST"

    def __init__(self, violations: list[FieldViolation]) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = violations


class RequestTooLong(InvalidRequest):
    """The prompt does not fit the context or the pool."""

    reason = "REQUEST_TOO_LONG"


class ModelNotFound(RouterError):
    """Another model was asked for."""

    reason = "MODEL_NOT_FOUND"


class RequestAlreadyExists(RouterError):
    """The id belongs to a request that is alive."""

    reason = "REQUEST_ALREADY_EXISTS"


class QueueFull(RouterError):
    """The queue is full, or too long for the request's deadline; retry_after_s says when to come back."""

    reason = "QUEUE_FULL"


class DeadlineExceeded(RouterError):
    """The request's deadline has passed."""

    reason = "DEADLINE_EXCEEDED"


class Unauthenticated(RouterError):
    """The call has no API key, or one that is not known."""

    reason = "API_KEY_INVALID"


class Unavailable(RouterError):
    """No shard group serves, or the router drains."""

    reason = "UNAVAILABLE"


class Aborted(RouterError):
    """The request was ended from outside."""

    reason = "ABORTED"


class RequestFailed(RouterError):
    """The server cannot compute this request; others are not affected."""

    reason = "REQUEST_FAILED"


class StepFailed(RequestFailed):
    """Steps with this request fail, also when it runs alone."""

    reason = "STEP_FAILED"


class NoFiniteLogits(RequestFailed):
    """The model gave no finite logits for the request's next token."""

    reason = "NO_FINITE_LOGITS"


STATUS_CODES: dict[type[RouterError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    RequestTooLong: grpc.StatusCode.INVALID_ARGUMENT,
    ModelNotFound: grpc.StatusCode.NOT_FOUND,
    RequestAlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    Aborted: grpc.StatusCode.ABORTED,
    RequestFailed: grpc.StatusCode.INTERNAL,
    StepFailed: grpc.StatusCode.INTERNAL,
    NoFiniteLogits: grpc.StatusCode.INTERNAL,
}


def status_code(error: RouterError) -> grpc.StatusCode:
    """The gRPC status of an error; INTERNAL only for a bug of ours."""
    return STATUS_CODES.get(type(error), grpc.StatusCode.INTERNAL)
