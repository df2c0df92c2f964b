"""Messages to the public methods: made from their descriptors with extreme values, and then broken as bytes."""

import random
from collections.abc import Callable
from typing import Any

from google.protobuf import message
from google.protobuf.descriptor import FieldDescriptor
from pagewire.v1 import inference_pb2

METHODS: dict[str, type[message.Message]] = {
    "Generate": inference_pb2.GenerateRequest,
    "Complete": inference_pb2.GenerateRequest,
    "Tokenize": inference_pb2.TokenizeRequest,
    "Detokenize": inference_pb2.DetokenizeRequest,
    "GetModel": inference_pb2.GetModelRequest,
}
TEXTS = ["", "x", "Once upon a time", "\0", "é" * 50, "語" * 300, "😀" * 40, "word " * 400, "{{ x }}", "a" * 20_000]
ROLES = ["user", "system", "assistant", "tool", "", "r" * 3_000]
INTEGERS = [0, 1, 2, 3, 5, 16, 63, 64, 100, 1000, 2**16, 2**31 - 1]
FLOATS = [0.0, 1.0, -1.0, 0.5, 2.0, 1e-45, 3.4e38, float("inf"), float("-inf"), float("nan"), 1.0001e-5]
MAX_TOKENS = 4
"""max_tokens of most requests; it is small because request handling is tested, not the model."""


def make(rng: random.Random) -> tuple[str, bytes]:
    """A method and a message for it: half of them well-formed, half broken as bytes."""
    method = rng.choice(list(METHODS))
    data = _sensible(rng, method) if rng.random() < 0.5 else _drawn(rng, METHODS[method]())
    for _ in range(rng.choice((0, 0, 1, 1, 3))):
        data = rng.choice(_BREAKS)(rng, data)
    return method, data


def _sensible(rng: random.Random, method: str) -> bytes:
    """A valid message, but for a field or two."""
    request = METHODS[method]()
    if isinstance(request, inference_pb2.GenerateRequest):
        request.text = rng.choice(TEXTS)
        request.sampling_params.max_tokens = rng.randint(1, MAX_TOKENS)
        for _ in range(rng.randint(0, 2)):
            _fill(rng, request.sampling_params, rng.choice(request.sampling_params.DESCRIPTOR.fields), 2)
        if request.sampling_params.max_tokens > 64:
            request.sampling_params.max_tokens = MAX_TOKENS
    if isinstance(request, inference_pb2.TokenizeRequest):
        request.chat.messages.add(role=rng.choice(ROLES), content=rng.choice(TEXTS))
    if isinstance(request, inference_pb2.DetokenizeRequest):
        request.token_ids.extend(rng.choices(range(300), k=rng.choice((0, 1, 50, 3_000))))
    return request.SerializeToString()


def _drawn(rng: random.Random, request: message.Message, depth: int = 4) -> bytes:
    """Any fields, with any values of their types."""
    for field in request.DESCRIPTOR.fields:
        if rng.random() < 0.3:
            _fill(rng, request, field, depth)
    return request.SerializeToString()


def _fill(rng: random.Random, parent: message.Message, field: Any, depth: int) -> None:
    """Sets a field to drawn values; a repeated one to several, and rarely to very many."""
    number = rng.choice((1, 1, 2, 3, 40, 3_000)) if field.is_repeated else 1
    try:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _fill_map(rng, getattr(parent, field.name), field, min(number, 40), depth)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            targets = getattr(parent, field.name)
            for _ in range(min(number, 40 if depth > 2 else 3)):
                target = targets.add() if field.is_repeated else targets
                target.SetInParent()
                if depth > 0:
                    target.MergeFromString(_drawn(rng, type(target)(), depth - 1))
        elif field.is_repeated:
            getattr(parent, field.name).extend(_value(rng, field) for _ in range(number))
        else:
            setattr(parent, field.name, _value(rng, field))
    except (ValueError, TypeError):
        return  # Out of the type's range.


def _fill_map(rng: random.Random, entries: Any, field: Any, number: int, depth: int) -> None:
    key_field, value_field = field.message_type.fields
    for _ in range(number):
        key = _value(rng, key_field)
        if value_field.type == FieldDescriptor.TYPE_MESSAGE:
            target = entries[key]
            if depth > 0:
                target.MergeFromString(_drawn(rng, type(target)(), depth - 1))
        else:
            entries[key] = _value(rng, value_field)


def _value(rng: random.Random, field: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_STRING:
        return rng.choice(TEXTS + ROLES)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.randbytes(rng.choice((0, 1, 32, 5_000)))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return rng.random() < 0.5
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return rng.choice(FLOATS)
    value = rng.choice(INTEGERS)
    return value if rng.random() < 0.8 else -value


def _flip(rng: random.Random, data: bytes) -> bytes:
    broken = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 2, 20))):
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
    return bytes(broken)


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randint(0, len(data))]


def _insert(rng: random.Random, data: bytes) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + rng.randbytes(rng.choice((1, 4, 100))) + data[at:]


def _repeat(rng: random.Random, data: bytes) -> bytes:
    start = rng.randint(0, len(data))
    part = data[start : start + rng.choice((1, 2, 8, 100))]
    return data[:start] + part * rng.choice((2, 10, 1_000)) + data[start:]


def _nest(rng: random.Random, data: bytes) -> bytes:
    """Wraps the bytes in a length-delimited field, many times over."""
    for _ in range(rng.choice((1, 10, 120))):
        tag = rng.randint(1, 24) << 3 | 2
        data = _varint(tag) + _varint(len(data)) + data
        if len(data) > 1 << 18:
            break
    return data


def _many(rng: random.Random, data: bytes) -> bytes:
    """Tens of thousands of tiny fields behind the message."""
    return data + (_varint(rng.randint(1, 24) << 3 | 2) + b"\0") * rng.choice((1_000, 50_000))


def _varint(value: int) -> bytes:
    encoded = b""
    while value >= 128:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])


_BREAKS: list[Callable[[random.Random, bytes], bytes]] = [_flip, _flip, _cut, _insert, _repeat, _nest, _many]
