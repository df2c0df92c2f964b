"""The router's errors, and the one table that maps them to status codes.

RouterError
+-- InvalidRequest          a field is missing, malformed or out of range
+-- GrammarFailed           its structured_outputs allow no token where it is, or outgrew a limit there
+-- GrammarTooCostly        its structured_outputs take longer to prepare than the shard allows
+-- RequestTooLong          the prompt does not fit the context or the pool
+-- ModelNotFound           another model was asked for
+-- ModelChanged            a request is resumed that another model has begun
+-- PromptChanged           a request is resumed whose prompt has become another one
+-- RequestAlreadyExists    the id belongs to a request that is alive
+-- QueueFull               the queue is full, or too long for the deadline: come back later
+-- RateLimited             the client uses more than it may: come back later
+-- DeadlineExceeded        the request's deadline has passed
+-- Unauthenticated         the call has no API key or token, or one that is not valid here
+-- Unavailable             no shard group serves, or the router drains
|   +-- ShardLost           a shard was lost while it ran the request, and another router can go on with it
+-- Aborted                 the request was ended from outside
+-- RequestFailed           the server cannot compute this request
    +-- StepFailed          steps with this request fail, also when it runs alone
    +-- NoFiniteLogits      the model gave no finite logits for the request's next token
    +-- ProcessorFailed     a logits processor of the server failed for the request
"""

import enum
from dataclasses import dataclass


class StatusCode(enum.IntEnum):
    """google.rpc.Code, as far as calls end with it. gRPC's statuses have the same names and numbers."""

    OK = 0
    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One thing wrong with a request."""

    field: str
    """Path within GenerateRequest, such as "sampling_params.top_p"."""
    description: str
    """Text that says what was given and what is accepted."""


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


class GrammarFailed(InvalidRequest):
    """The request's structured_outputs allow no token behind what was generated, or outgrew a limit there."""

    reason = "GRAMMAR_FAILED"


class GrammarTooCostly(RouterError):
    """The request's structured_outputs take more time or memory to prepare than the shard allows."""

    reason = "GRAMMAR_TOO_COSTLY"

    def __init__(self, violation: FieldViolation) -> None:
        super().__init__(f"{violation.field}: {violation.description}")
        self.violations = [violation]


class ModelNotFound(RouterError):
    """Another model was asked for."""

    reason = "MODEL_NOT_FOUND"


class ModelChanged(RouterError):
    """A request is resumed that another model has begun, or the same one with other defaults."""

    reason = "MODEL_CHANGED"


class PromptChanged(RouterError):
    """A request is resumed whose prompt has become another one, such as by the date in a chat template."""

    reason = "PROMPT_CHANGED"


class RequestAlreadyExists(RouterError):
    """The id belongs to a request that is alive."""

    reason = "REQUEST_ALREADY_EXISTS"


class QueueFull(RouterError):
    """The queue is full, or too long for the request's deadline; retry_after_s says when to come back."""

    reason = "QUEUE_FULL"


class RateLimited(RouterError):
    """The client uses more than it may; retry_after_s says when to come back."""

    reason = "RATE_LIMITED"


class DeadlineExceeded(RouterError):
    """The request's deadline has passed."""

    reason = "DEADLINE_EXCEEDED"


class Unauthenticated(RouterError):
    """The call has no API key or token, or one that is not valid here."""

    reason = "API_KEY_INVALID"


class Unavailable(RouterError):
    """No shard group serves, or the router drains."""

    reason = "UNAVAILABLE"


class ShardLost(Unavailable):
    """A shard was lost while it ran the request, and another router can go on with it."""

    reason = "SHARD_LOST"

    def __init__(self, message: str, *, token: str, retry_after_s: float | None = None) -> None:
        """token: What the client gives the other router, so that shards are not lost over it for ever."""
        super().__init__(message, retry_after_s=retry_after_s)
        self.token = token


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


class ProcessorFailed(RequestFailed):
    """A logits processor of the server failed for the request."""

    reason = "PROCESSOR_FAILED"


STATUS_CODES: dict[type[RouterError], StatusCode] = {
    InvalidRequest: StatusCode.INVALID_ARGUMENT,
    RequestTooLong: StatusCode.INVALID_ARGUMENT,
    GrammarFailed: StatusCode.INVALID_ARGUMENT,
    GrammarTooCostly: StatusCode.RESOURCE_EXHAUSTED,
    ModelNotFound: StatusCode.NOT_FOUND,
    ModelChanged: StatusCode.FAILED_PRECONDITION,
    PromptChanged: StatusCode.FAILED_PRECONDITION,
    RequestAlreadyExists: StatusCode.ALREADY_EXISTS,
    QueueFull: StatusCode.RESOURCE_EXHAUSTED,
    RateLimited: StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: StatusCode.DEADLINE_EXCEEDED,
    Unauthenticated: StatusCode.UNAUTHENTICATED,
    Unavailable: StatusCode.UNAVAILABLE,
    ShardLost: StatusCode.UNAVAILABLE,
    Aborted: StatusCode.ABORTED,
    RequestFailed: StatusCode.INTERNAL,
    StepFailed: StatusCode.INTERNAL,
    NoFiniteLogits: StatusCode.INTERNAL,
    ProcessorFailed: StatusCode.INTERNAL,
}


def status_code(error: RouterError) -> StatusCode:
    """The status that a client is told; INTERNAL for an error without a status of its own, which is a bug."""
    return STATUS_CODES.get(type(error), StatusCode.INTERNAL)
