"""Decodes the messages of clients. A message that does not decode is refused with the name of the wrong field.

protobuf holds Python's global lock while it parses, and is slowest with messages of very many small fields. The fields
of large messages are therefore counted before they are parsed; small messages cannot take long.
"""

from collections.abc import Iterator
from typing import Any, TypeVar

from google.protobuf import message
from google.protobuf.descriptor import FieldDescriptor

from pagewire_router.errors import FieldViolation, InvalidRequest, RequestTooLong

M = TypeVar("M", bound=message.Message)
MAX_UNCOUNTED_BYTES = 1 << 20
"""Messages up to this size are parsed without counting their fields, which takes 30 ms at worst."""
MAX_FIELDS = 20_000
"""Most fields of a larger message, over all levels, and most fields searched for the wrong one; 20 ms at worst."""
MAX_DEPTH = 100
"""Deepest nesting that protobuf parses."""
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

Field = tuple[str, Any, memoryview]
"""Path, descriptor and content of a field. The class of descriptors differs between protobuf's implementations."""


def decode(message_type: type[M], data: bytes, max_bytes: int) -> M:
    """Parses a message of at most max_bytes. Raises InvalidRequest, RequestTooLong."""
    name = message_type.DESCRIPTOR.full_name
    if len(data) > max_bytes:
        description = f"{name} has {len(data)} bytes; accepted: up to {max_bytes} (--max-receive-message-bytes)"
        raise RequestTooLong([FieldViolation("message", description)])
    if len(data) > MAX_UNCOUNTED_BYTES:
        _check_num_fields(message_type.DESCRIPTOR, data)
    try:
        return message_type.FromString(data)
    except message.DecodeError:
        violation = _find_bad_text(message_type.DESCRIPTOR, data)
        raise InvalidRequest([violation or FieldViolation("message", f"the bytes are not a {name} message")]) from None


class _TooManyFields(ValueError):
    """The message has more than MAX_FIELDS fields."""


def _check_num_fields(descriptor: Any, data: bytes) -> None:
    """Raises RequestTooLong if there are too many fields. Bytes that are no message are left to protobuf."""
    try:
        for _ in _fields_of(descriptor, data):
            pass
    except _TooManyFields:
        description = f"{len(data)} bytes hold more than {MAX_FIELDS} fields; accepted: fewer in messages of this size"
        raise RequestTooLong([FieldViolation("message", description)]) from None
    except (IndexError, ValueError):
        return


def _find_bad_text(descriptor: Any, data: bytes) -> FieldViolation | None:
    """The first string field that is not UTF-8, in the message or one inside it, among the first MAX_FIELDS fields."""
    try:
        for name, field, content in _fields_of(descriptor, data):
            if field.type != FieldDescriptor.TYPE_STRING:
                continue
            try:
                str(content, "utf-8")
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                return FieldViolation(name, f"is not valid UTF-8: byte 0x{byte:02x} at {error.start}")
    except (IndexError, ValueError):
        return None
    return None


def _fields_of(descriptor: Any, data: bytes) -> Iterator[Field]:
    """The length-delimited fields that the message and those inside it are known to have, in their order.

    Raises IndexError or ValueError where the bytes are no message, _TooManyFields after MAX_FIELDS of any kind.
    """
    left = [MAX_FIELDS]
    levels = [("", descriptor, _length_delimited(memoryview(data), left))]
    while levels:
        path, of, contents = levels[-1]
        number, content = next(contents, (0, b""))
        if number == 0:
            levels.pop()
            continue
        field = of.fields_by_number.get(number)
        if field is None:
            continue
        name = f"{path}{field.name}"
        yield name, field, memoryview(content)
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            if len(levels) > MAX_DEPTH:
                raise ValueError
            levels.append((f"{name}.", field.message_type, _length_delimited(memoryview(content), left)))


def _length_delimited(data: memoryview, left: list[int]) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each length-delimited field of one message; counts all fields down from left[0]."""
    position = 0
    while position < len(data):
        if left[0] == 0:
            raise _TooManyFields
        left[0] -= 1
        tag, position = _read_varint(data, position)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise ValueError
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


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
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
