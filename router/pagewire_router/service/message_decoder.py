"""Decoding what clients send, so that undecodable bytes are the client's error and the message says which field."""

from collections.abc import Iterator
from typing import Any, TypeVar

from google.protobuf import message
from google.protobuf.descriptor import FieldDescriptor

from pagewire_router.errors import FieldViolation, InvalidRequest

M = TypeVar("M", bound=message.Message)
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def decode(message_type: type[M], data: bytes) -> M:
    """Parses a message. Raises InvalidRequest."""
    try:
        return message_type.FromString(data)
    except message.DecodeError:
        violation = _find_bad_text(message_type.DESCRIPTOR, data) or FieldViolation(
            "", f"the bytes are not a {message_type.DESCRIPTOR.full_name} message"
        )
        raise InvalidRequest([violation]) from None


def _find_bad_text(descriptor: Any, data: bytes, path: str = "") -> FieldViolation | None:
    """The first string field that is not UTF-8, in the message or one inside it.

    descriptor: a message's; its class differs between protobuf's implementations.
    """
    try:
        for number, content in _length_delimited(data):
            field = descriptor.fields_by_number.get(number)
            if field is None:
                continue
            name = f"{path}{field.name}"
            if field.type == FieldDescriptor.TYPE_STRING:
                content.decode()
            elif field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type is not None:
                found = _find_bad_text(field.message_type, content, f"{name}.")
                if found is not None:
                    return found
    except UnicodeDecodeError as error:
        return FieldViolation(name, f"is not valid UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}")
    except (IndexError, ValueError):
        return None
    return None


def _length_delimited(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of each length-delimited field. Raises IndexError or ValueError where the bytes end early."""
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        number, kind = tag >> 3, tag & 7
        if kind == _LENGTH:
            length, position = _read_varint(data, position)
            if position + length > len(data):
                raise ValueError
            yield number, data[position : position + length]
            position += length
        elif kind == _VARINT:
            _, position = _read_varint(data, position)
        elif kind in (_FIXED64, _FIXED32):
            position += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError
