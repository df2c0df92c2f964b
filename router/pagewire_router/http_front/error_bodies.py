"""The bodies of error answers: OpenAI's form, and Anthropic's."""

from typing import Any

import orjson

from pagewire_router.http_front.errors import HttpError

_OPENAI_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def _type(types: dict[int, str], status: int, others: str) -> str:
    return types.get(status, "invalid_request_error" if status < 500 else others)


def openai_error(error: HttpError) -> dict[str, Any]:
    """The error object of OpenAI's API."""
    return {
        "message": error.message,
        "type": _type(_OPENAI_TYPES, error.status, "server_error"),
        "param": error.param,
        "code": error.code,
    }


def openai_body(error: HttpError, _request_id: str) -> bytes:
    """The body of an answer with an error, and the data of an event with one."""
    return orjson.dumps({"error": openai_error(error)})


def anthropic_error(error: HttpError) -> dict[str, Any]:
    """The error object of Anthropic's API."""
    told = {"type": _type(_ANTHROPIC_TYPES, error.status, "api_error"), "message": error.message}
    return told if error.details is None else {**told, "details": error.details}


def anthropic_body(error: HttpError, request_id: str) -> bytes:
    """The body of an answer with an error, in the form of Anthropic's API."""
    return orjson.dumps({"type": "error", "error": anthropic_error(error), "request_id": request_id})
