"""google.protobuf.Struct as the JSON that it holds."""

import math
from typing import Any

from google.protobuf import struct_pb2


def depth(value: Any) -> int:
    """How deep objects and arrays are nested in a Struct, or in a value within one; protobuf itself bounds it."""
    if isinstance(value, struct_pb2.Struct):
        return 1 + max(map(depth, value.fields.values()), default=0)
    if isinstance(value, struct_pb2.ListValue):
        return 1 + max(map(depth, value.values), default=0)
    kind = value.WhichOneof("kind")
    return depth(getattr(value, kind)) if kind in ("struct_value", "list_value") else 0


def plain(value: Any) -> Any:
    """A Struct, or a value within one, as Python values; protobuf itself bounds its depth.

    Its numbers are all doubles: whole ones become integers, as they were in JSON.

    Raises:
        ValueError: it holds a number that JSON has not.
    """
    if isinstance(value, struct_pb2.Struct):
        return {key: plain(entry) for key, entry in value.fields.items()}
    if isinstance(value, struct_pb2.ListValue):
        return [plain(entry) for entry in value.values]
    kind = value.WhichOneof("kind")
    if kind in (None, "null_value"):
        return None
    content = getattr(value, kind)
    if kind == "number_value":
        if not math.isfinite(content):
            raise ValueError(f"holds {content}, which is no number of JSON")
        return int(content) if content.is_integer() else content
    return plain(content) if kind in ("struct_value", "list_value") else content
