"""Kubernetes' protobuf encoding of a Secret, which is how helm stores a release: as the object that JSON would give.

Only what helm sends is read: fields 1 and 2 of the envelope runtime.Unknown (type, object), and of v1.Secret its
metadata (name, labels, annotations), data and type. Field numbers are those of the API's generated.proto files.
"""

import base64
from collections import defaultdict
from typing import Any

MAGIC = b"k8s\0"
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def decode_secret(data: bytes) -> dict[str, Any]:
    """The secret in a request's body. Raises ValueError if it is something else."""
    envelope = _fields(data.removeprefix(MAGIC))
    kind = _fields(envelope[1][0])
    if (_text(kind, 1), _text(kind, 2)) != ("v1", "Secret"):
        raise ValueError(f"no v1 Secret but {_text(kind, 1)} {_text(kind, 2)}")
    secret = _fields(envelope[2][0])
    metadata = _fields(secret[1][0])
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": _text(metadata, 1),
            "labels": {key: value.decode() for key, value in _map(metadata[11]).items()},
            "annotations": {key: value.decode() for key, value in _map(metadata[12]).items()},
        },
        "data": {key: base64.b64encode(value).decode() for key, value in _map(secret[2]).items()},
        "type": _text(secret, 3),
    }


def _text(fields: dict[int, list[bytes]], number: int) -> str:
    return fields[number][0].decode() if fields[number] else ""


def _map(entries: list[bytes]) -> dict[str, bytes]:
    parsed = [_fields(entry) for entry in entries]
    return {_text(entry, 1): entry[2][0] if entry[2] else b"" for entry in parsed}


def _fields(data: bytes) -> dict[int, list[bytes]]:
    """The length-delimited fields of a message; numbers are passed over."""
    found: dict[int, list[bytes]] = defaultdict(list)
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        wire_type = tag & 7
        if wire_type == VARINT:
            _, position = _varint(data, position)
        elif wire_type == BYTES:
            length, position = _varint(data, position)
            found[tag >> 3].append(data[position : position + length])
            position += length
        else:
            position += {FIXED64: 8, FIXED32: 4}[wire_type]
    return found


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
