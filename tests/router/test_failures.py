"""What clients are told when a grammar cannot be used, or leaves nothing to sample."""

import pytest
from pagewire.v1 import shard_pb2
from pagewire_router.errors import (
    GrammarFailed,
    InvalidRequest,
    NoFiniteLogits,
    ProcessorFailed,
    StatusCode,
    status_code,
)
from pagewire_router.groups.failures import failure_error, refusal_error
from pagewire_router.scheduling.grammars import Refusal
from pagewire_router.scheduling.sequence import SequenceGroup
from scheduling_world import make_request

FIELD = "sampling_params.structured_outputs"


def refused(code):
    return refusal_error(Refusal(SequenceGroup(make_request([1], grammar="g"), 8), code, "uses `not`"))


def test_what_is_not_supported_is_a_violation_of_the_field():
    error = refused(StatusCode.INVALID_ARGUMENT)
    assert type(error) is InvalidRequest
    assert [(violation.field, violation.description) for violation in error.violations] == [(FIELD, "uses `not`")]


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        (StatusCode.RESOURCE_EXHAUSTED, StatusCode.RESOURCE_EXHAUSTED, "GRAMMAR_TOO_COSTLY"),
        (StatusCode.UNAVAILABLE, StatusCode.UNAVAILABLE, "UNAVAILABLE"),
        (StatusCode.INTERNAL, StatusCode.INTERNAL, "REQUEST_FAILED"),
    ],
)
def test_other_refusals(code, status, reason):
    error = refused(code)
    assert (status_code(error), error.reason) == (status, reason)
    assert "uses `not`" in error.message


@pytest.mark.parametrize(
    ("failure", "expected"),
    [(shard_pb2.STOP_REASON_GRAMMAR, GrammarFailed), (shard_pb2.STOP_REASON_ERROR, NoFiniteLogits)],
)
def test_a_sequence_without_a_next_token(failure, expected):
    error = failure_error(make_request([1], grammar="g"), failure)
    assert type(error) is expected
    assert "structured_outputs" in error.message
    assert expected is GrammarFailed or "structured_outputs" not in failure_error(make_request([1]), failure).message


@pytest.mark.parametrize(
    ("code", "expected"), [(StatusCode.INVALID_ARGUMENT, InvalidRequest), (StatusCode.INTERNAL, ProcessorFailed)]
)
def test_what_a_logits_processor_says(code, expected):
    failure = shard_pb2.RowFailure(code=code, message="target_token is no integer")
    error = failure_error(make_request([1]), shard_pb2.STOP_REASON_PROCESSOR, failure)
    assert (type(error), status_code(error)) == (expected, code)
    assert error.message.endswith("target_token is no integer")
