"""Parts of protobuf's wire format, for messages that are encoded by hand because objects would cost too much.

Encoding: https://protobuf.dev/programming-guides/encoding/.
"""


def _encode_varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


_VARINTS = [_encode_varint(value) for value in range(1 << 14)]
"""Lengths and most token ids."""


def varint(value: int) -> bytes:
    """The base-128 encoding of a value that is not negative."""
    return _VARINTS[value] if value < 1 << 14 else _encode_varint(value)


def length_delimited(tag: bytes, body: bytes) -> bytes:
    """A field that holds a string, a message or packed numbers.

    Args:
        tag: The encoded field number and wire type 2: for field numbers below 16 the byte (number << 3 | 2).
    """
    return tag + varint(len(body)) + body
