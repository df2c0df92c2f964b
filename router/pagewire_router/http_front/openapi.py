"""The OpenAPI document of the routes, made of the same tables of fields that requests are read by."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson
from pagewire_common.version import version

from pagewire_router.http_front.fields import FieldTable, Schema, object_schema
from pagewire_router.http_front.openapi_schemas import COMPONENTS, reference

_RETRY_AFTER = {"Retry-After": {"description": "Seconds after which to come back.", "schema": {"type": "integer"}}}
_OF_ALL = {
    "503": "No shard serves, the server drains, or too many connections are open.",
}
_OF_KEYS = {"401": "The API key is missing or not known."}
_OF_BODIES = {
    "400": "A field is wrong or not served, which the message names, or the body is no JSON.",
    "404": "Another model is asked for.",
    "408": "The body came too slowly.",
    "413": "The body is too large.",
    "415": "The body is no JSON by its content-type, or is compressed.",
    "429": "Too many requests wait.",
    "500": "The server cannot compute this request.",
    "504": "The request took longer than the server allows.",
}
_OF_GENERATION = {"409": "The request_id belongs to a request that is alive."}
_COME_BACK = ("429", "503")
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
    answer: str | None = None
    """The component that the answer is; None: it has no schema."""
    event: str | None = None
    """The component that the data of an event of its streams is; None: it has no streams."""
    error: str = "Error"
    """The component that errors are."""
    parts: Schema = field(default_factory=dict)
    """Schemas of fields by name, where they say more than the table does."""
    alternatives: tuple[str, ...] = ()
    """Fields of which exactly one is given."""
    content_type: str = "application/json"
    """Of the answer."""


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
                "schemas": COMPONENTS,
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                },
            },
        }
    )


def _described(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": operation.path.strip("/").translate(_NO_IDENTIFIER),
        "responses": {"200": {"description": "The answer.", "content": _content(operation)}, **_errors(operation)},
    }
    if "{" in operation.path:
        name = operation.path.partition("{")[2].removesuffix("}")
        described["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}]
    if operation.needs_key:
        described["security"] = [{"bearer": []}, {"key": []}, {}]
    if operation.fields is not None:
        schema = object_schema(operation.fields)
        for name, part in operation.parts.items():
            told = schema["properties"][name]
            schema["properties"][name] = {**part, "description": told["description"]}
        if operation.alternatives:
            schema["oneOf"] = [{"required": [name]} for name in operation.alternatives]
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return described


def _content(operation: Operation) -> dict[str, Any]:
    answer: Schema = {"type": "object"} if operation.answer is None else reference(operation.answer)
    if operation.content_type != "application/json":
        answer = {"type": "string"}
    content: dict[str, Any] = {operation.content_type: {"schema": answer}}
    if operation.event is not None:
        content["text/event-stream"] = {"schema": _event(operation.event)}
    return content


def _event(component: str) -> Schema:
    """Schema of one server-sent event, which is what OpenAPI 3.1 has for streams."""
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": reference(component)}
    return {
        "type": "object",
        "description": "Server-sent events, if stream is true; comments among them are signs of life.",
        "properties": {"data": {"anyOf": [{"type": "string", "enum": ["[DONE]"]}, data]}, "event": {"type": "string"}},
        "required": ["data"],
    }


def _errors(operation: Operation) -> dict[str, Any]:
    statuses = dict(_OF_ALL)
    if operation.needs_key:
        statuses |= _OF_KEYS
    if "{" in operation.path:
        statuses["404"] = _OF_BODIES["404"]
    if operation.fields is not None:
        statuses |= _OF_BODIES
    if operation.event is not None:
        statuses |= _OF_GENERATION
    content = {"application/json": {"schema": reference(operation.error)}}
    if operation.content_type != "application/json":
        content |= {operation.content_type: {"schema": {"type": "string"}}}
    errors = {}
    for status, description in sorted(statuses.items()):
        errors[status] = {"description": description, "content": content}
        if status in _COME_BACK:
            errors[status]["headers"] = _RETRY_AFTER
    return errors
