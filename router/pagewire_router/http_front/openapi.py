"""The OpenAPI document of the routes, made of the same tables of fields that requests are read by."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import orjson
from pagewire_common.version import version

from pagewire_router.http_front.fields import FieldTable, Schema, object_schema

_ERROR: Schema = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type"],
        }
    },
    "required": ["error"],
}
_STATUSES = {
    "400": "A field is wrong or not served; the message names it.",
    "401": "The API key is missing or not known.",
    "404": "Another model is asked for.",
    "409": "The request_id belongs to a request that is alive.",
    "413": "The body is too large.",
    "415": "The body is no JSON.",
    "429": "Too many requests wait; Retry-After says when to come back.",
    "500": "The server cannot compute this request.",
    "503": "No shard serves, or the server drains; Retry-After says when to come back.",
    "504": "The request took longer than the server allows.",
}


_NO_IDENTIFIER = str.maketrans({"/": "_", ".": "_", "{": "", "}": ""})


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path, as the document describes it."""

    method: str
    path: str
    summary: str
    fields: FieldTable | None = None
    """Fields of the body; None: there is no body."""
    needs_key: bool = True


def document(operations: Iterable[Operation]) -> bytes:
    """The document, as JSON."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    return orjson.dumps(
        {
            "openapi": "3.1.0",
            "info": {"title": "pagewire", "version": version()},
            "paths": paths,
            "components": {
                "schemas": {"Error": _ERROR},
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                },
            },
        }
    )


def _described(operation: Operation) -> dict[str, Any]:
    is_streamed = operation.fields is not None and any(field.name == "stream" for field in operation.fields)
    answer: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if is_streamed:
        answer["text/event-stream"] = {"schema": {"type": "string"}}
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": operation.path.strip("/").translate(_NO_IDENTIFIER),
        "responses": {"200": {"description": "The answer.", "content": answer}},
    }
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    if "{" in operation.path:
        name = operation.path.partition("{")[2].removesuffix("}")
        described["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}]
        described["responses"]["404"] = {"description": _STATUSES["404"], "content": error}
    if operation.needs_key:
        described["security"] = [{"bearer": []}, {"key": []}, {}]
    if operation.fields is not None:
        schema = {"schema": object_schema(operation.fields)}
        described["requestBody"] = {"required": True, "content": {"application/json": schema}}
        for status, description in _STATUSES.items():
            described["responses"][status] = {"description": description, "content": error}
    return described
