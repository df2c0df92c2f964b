"""Collects what the spans of one traced call are made of, while the call is served."""

from dataclasses import dataclass

from pagewire.v1 import inference_pb2

from pagewire_router.output.output_buffer import OutputBuffer
from pagewire_router.request import Request
from pagewire_router.timeline import Timeline


@dataclass(slots=True)
class CallTrace:
    """One traced call. The fields of a request are set by admission, and stay None for calls that do not generate."""

    timeline: Timeline
    model: str = ""
    """Name of the served model."""
    message: inference_pb2.GenerateRequest | None = None
    """The request as the client sent it."""
    request: Request | None = None
    """The admitted request; None: it was refused."""
    output: OutputBuffer | None = None
    """The output of the admitted request."""
