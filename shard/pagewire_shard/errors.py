"""The shard's errors, and the one table that maps them to gRPC statuses.

ShardError
+-- ModelError                   the shard cannot start with what it was given
|   +-- ModelNotFound            no such directory, hub id or bundled model
|   +-- UnsupportedArchitecture  no model family of ours reads this config.json
|   +-- CorruptWeights           the weight files are damaged, incomplete, of another shape, or name code to run
|   +-- CorruptTokenizer         there are tokenizer files, but no tokenizer comes out of them
|   +-- PoolTooSmall             the block pool cannot hold one block, or one sequence of --max-model-len
|   +-- BadOption                an option's value cannot be served here
|   +-- GroupFailed              the ranks of a shard group cannot meet
+-- StreamError                  ends a plan stream
    +-- InvalidMessage           the message is malformed, or it is not its turn
    +-- ProtocolMismatch         the router speaks another major version
    +-- LeaseHeld                another router drives the shard
    +-- LeaseLost                the lease expired or was taken, or the router went away
    +-- StaleEpoch               the message belongs to another term
    +-- PlanRefused              a plan was refused as a whole, nothing of it was applied
    +-- ShardUnavailable         the shard loads, drains or has stopped
    +-- StepFailed               a bug or a device fault ended the epoch
"""

import grpc


class ShardError(Exception):
    """An error an operator or a router is told about, in one line. `reason` is stable and machine-readable."""

    reason = "INTERNAL"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ModelError(ShardError):
    """The shard cannot start with what it was given. The message names the model and what is accepted."""

    reason = "MODEL_ERROR"


class ModelNotFound(ModelError):
    """No such directory, hub id or bundled model."""

    reason = "MODEL_NOT_FOUND"


class UnsupportedArchitecture(ModelError):
    """No model family of ours reads this config.json."""

    reason = "UNSUPPORTED_ARCHITECTURE"


class CorruptWeights(ModelError):
    """The weight files are damaged, incomplete, of another shape, or name code to run."""

    reason = "CORRUPT_WEIGHTS"


class CorruptTokenizer(ModelError):
    """There are tokenizer files, but no tokenizer comes out of them."""

    reason = "CORRUPT_TOKENIZER"


class PoolTooSmall(ModelError):
    """The block pool cannot hold one block, or one sequence of --max-model-len. The message says what would fit."""

    reason = "POOL_TOO_SMALL"


class BadOption(ModelError):
    """An option's value cannot be served here."""

    reason = "BAD_OPTION"


class GroupFailed(ModelError):
    """The ranks of a shard group cannot meet."""

    reason = "GROUP_FAILED"


class StreamError(ShardError):
    """Ends a plan stream; the router may open another."""


class InvalidMessage(StreamError):
    """The message is malformed, or it is not its turn."""

    reason = "INVALID_MESSAGE"


class ProtocolMismatch(StreamError):
    """The router speaks another major version."""

    reason = "PROTOCOL_MISMATCH"


class LeaseHeld(StreamError):
    """Another router drives the shard: `holder`, for at least `remaining_ms` unless it lets go. Empty: none does, but
    the lease has not been free for as long as was asked for."""

    reason = "LEASE_HELD"

    def __init__(self, holder: str, remaining_ms: int) -> None:
        message = f"the lease is held by router {holder!r} for another {remaining_ms} ms"
        if not holder:
            message = f"the lease has been free for less than was asked for, by {remaining_ms} ms"
        super().__init__(f"{message}; wait, or set Hello.force to take it")
        self.holder = holder
        self.remaining_ms = remaining_ms


class LeaseLost(StreamError):
    """The lease expired or was taken, or the router went away."""

    reason = "LEASE_LOST"


class StaleEpoch(StreamError):
    """The message belongs to another term."""

    reason = "STALE_EPOCH"


class PlanRefused(StreamError):
    """A plan was refused as a whole, nothing of it was applied."""

    reason = "PLAN_REFUSED"

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class RankRefused(PlanRefused):
    """It was refused for what only this shard lacks, so that the other ranks of its group may run it."""


class ShardUnavailable(StreamError):
    """The shard loads, drains or has stopped."""

    reason = "SHARD_UNAVAILABLE"


class StepFailed(StreamError):
    """A bug or a device fault ended the epoch. The log has the details."""

    reason = "STEP_FAILED"


STATUS_CODES: dict[type[ShardError], grpc.StatusCode] = {
    ModelNotFound: grpc.StatusCode.NOT_FOUND,
    UnsupportedArchitecture: grpc.StatusCode.UNIMPLEMENTED,
    CorruptWeights: grpc.StatusCode.DATA_LOSS,
    CorruptTokenizer: grpc.StatusCode.DATA_LOSS,
    PoolTooSmall: grpc.StatusCode.FAILED_PRECONDITION,
    BadOption: grpc.StatusCode.INVALID_ARGUMENT,
    InvalidMessage: grpc.StatusCode.INVALID_ARGUMENT,
    ProtocolMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    LeaseHeld: grpc.StatusCode.FAILED_PRECONDITION,
    LeaseLost: grpc.StatusCode.ABORTED,
    StaleEpoch: grpc.StatusCode.ABORTED,
    ShardUnavailable: grpc.StatusCode.UNAVAILABLE,
    StepFailed: grpc.StatusCode.INTERNAL,
}


def status_code(error: ShardError) -> grpc.StatusCode:
    """The gRPC status of an error; INTERNAL only for a bug of ours."""
    if isinstance(error, PlanRefused):
        return error.code
    return STATUS_CODES.get(type(error), grpc.StatusCode.INTERNAL)
