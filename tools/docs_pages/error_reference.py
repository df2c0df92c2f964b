"""The reference page of errors, from the classes that raise them and the tables that map them to statuses."""

import inspect
from collections.abc import Iterator

from pagewire import errors as client_errors
from pagewire_router import errors as router_errors
from pagewire_shard import errors as shard_errors

from docs_pages.markdown import NOTE, cell, table

INTRO = """# Errors

Every error has a reason that is stable and machine-readable, beside a message for people. This page lists them;
[Clients](../clients.md#errors) says what to do about each status, and how to read details in other languages.
"""
CLIENTS = """## What clients are told

Statuses of the public service. The reason is in `google.rpc.ErrorInfo`, domain `pagewire`; `BadRequest` names the
fields that are wrong, `RetryInfo` says when to come back. An error that is none of these is a bug, and `INTERNAL`.
"""
STARTS = """## When a shard does not start

It ends with status 1 and one line on standard error, `error: ...`, which names the model and what is accepted.
`pagewire serve` and `LLM` pass the line on.
"""
STREAMS = """## What ends a plan stream

Between router and shard. Clients do not see these: the router opens the stream again, or moves the sequences to another
shard. `pagewire_shard_plan_stream_failures_total` counts them by reason.
"""


def page() -> str:
    """Returns the page: the errors of the client, the router and the shard."""
    starts = "".join(f"- {_meaning(error)}\n" for error in shard_errors.ModelError.__subclasses__())
    parts = [
        f"{NOTE}\n{INTRO}",
        f"{CLIENTS}\n{table(('reason', 'status', 'in Python', 'meaning'), _client_rows())}",
        f"{STARTS}\n{starts}",
        f"{STREAMS}\n{table(('reason', 'meaning'), _stream_rows())}",
    ]
    return "\n".join(parts)


def _client_rows() -> Iterator[tuple[str, str, str, str]]:
    for error, status in router_errors.STATUS_CODES.items():
        in_python = client_errors.ERRORS.get(status.name, client_errors.ServerError)
        link = f"[`{in_python.__name__}`](python.md#errors)"
        yield f"`{error.reason}`", f"`{status.name}`", link, _meaning(error)


def _stream_rows() -> Iterator[tuple[str, str]]:
    for error in shard_errors.StreamError.__subclasses__():
        yield f"`{error.reason}`", _meaning(error)


def _meaning(error: type[Exception]) -> str:
    return cell(inspect.getdoc(error) or "")
