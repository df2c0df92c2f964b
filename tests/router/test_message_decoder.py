"""Decoding what clients send: bounded before it is parsed, and no bytes take long to refuse."""

import time

import pytest
from google.protobuf import struct_pb2
from pagewire.v1 import inference_pb2
from pagewire_router.errors import InvalidRequest, RequestTooLong
from pagewire_router.grpc_front.message_decoder import MAX_FIELDS, MAX_UNCOUNTED_BYTES, decode

MAX_BYTES = 16 << 20
LONGEST_S = 1.0
"""For what takes some 20 ms: a bound that even a busy machine keeps, and that unbounded work does not."""


def varint(value):
    encoded = b""
    while value >= 128:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def chat(content):
    return field(5, content)


def kwargs(value):
    """ChatPrompt.template_kwargs with one entry."""
    return chat(field(5, field(1, field(1, b"k") + field(2, value))))


def nested(levels, content):
    """A google.protobuf.Value of lists in lists around a string."""
    value = field(3, content)
    for _ in range(levels):
        value = field(6, field(1, value))
    return value


def refusal(data, max_bytes=MAX_BYTES):
    began_s = time.perf_counter()
    with pytest.raises(InvalidRequest) as caught:
        decode(inference_pb2.GenerateRequest, data, max_bytes)
    assert time.perf_counter() - began_s < LONGEST_S
    (violation,) = caught.value.violations
    return caught.value, violation


def test_a_message_is_parsed():
    request = inference_pb2.GenerateRequest(text="x" * 2 * MAX_UNCOUNTED_BYTES)
    assert decode(inference_pb2.GenerateRequest, request.SerializeToString(), MAX_BYTES) == request


def test_a_message_above_its_limit_is_not_parsed_and_the_flag_is_named():
    error, violation = refusal(b"\xff" * 101, max_bytes=100)
    assert isinstance(error, RequestTooLong)
    assert "101 bytes; accepted: up to 100" in violation.description
    assert "--max-receive-message-bytes" in violation.description


@pytest.mark.parametrize(
    "data",
    [
        chat(field(1, b"") * MAX_UNCOUNTED_BYTES),
        kwargs(field(6, field(1, b"") * MAX_UNCOUNTED_BYTES)),
        field(4, b"\x08\x01" * MAX_UNCOUNTED_BYTES),
        field(6, field(10, b"a") * MAX_UNCOUNTED_BYTES),
        field(900, b"") * MAX_UNCOUNTED_BYTES,
    ],
    ids=["messages", "list", "unpacked ids", "stop strings", "unknown"],
)
def test_a_large_message_of_very_many_fields_is_refused_unparsed(data):
    error, violation = refusal(data)
    assert isinstance(error, RequestTooLong)
    assert f"more than {MAX_FIELDS} fields" in violation.description


def test_many_fields_are_fine_where_they_cannot_take_long():
    request = inference_pb2.GenerateRequest(chat=inference_pb2.ChatPrompt(messages=[{}] * (MAX_FIELDS + 1)))
    assert decode(inference_pb2.GenerateRequest, request.SerializeToString(), MAX_BYTES) == request


@pytest.mark.parametrize("levels", [1, 40, 90, 350, 5_000])
def test_bad_text_is_found_or_given_up_at_any_depth(levels):
    _, violation = refusal(kwargs(nested(levels, b"\xff" * 1_000)))
    if levels <= 40:
        assert violation.description == "is not valid UTF-8: byte 0xff at 0"
        assert violation.field.startswith("chat.template_kwargs.fields.value.list_value.values.")
    else:
        assert violation.description


def test_nesting_costs_no_copies():
    refusal(kwargs(nested(350, b"\xff" * 4_000_000)))


def test_bad_text_behind_very_many_fields_is_not_looked_for():
    _, violation = refusal(chat(field(1, b"") * (2 * MAX_FIELDS) + field(1, field(2, b"\xff"))))
    assert "not a pagewire.v1.GenerateRequest" in violation.description


@pytest.mark.parametrize(
    "data", [b"\xff" * 20, b"\x2a", b"\x2a\x05ab", b"\x00", b"\x0b", b"\x2a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"]
)
def test_bytes_that_are_no_message_are_refused(data):
    error, violation = refusal(data)
    assert not isinstance(error, RequestTooLong)
    assert violation.field == "message"


def test_the_first_bad_text_is_named_in_the_order_of_the_bytes():
    values = struct_pb2.ListValue(values=[struct_pb2.Value(string_value="good"), struct_pb2.Value(string_value="bad!")])
    data = kwargs(struct_pb2.Value(list_value=values).SerializeToString()).replace(b"bad!", b"ba\xc3!")
    _, violation = refusal(data + field(3, b"\xff"))
    assert violation.field == "chat.template_kwargs.fields.value.list_value.values.string_value"
    assert violation.description == "is not valid UTF-8: byte 0xc3 at 2"
