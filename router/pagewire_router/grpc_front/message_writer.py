"""Writes what Generate answers to the stream of one call."""

from collections.abc import Sequence

from pagewire_router.grpc_front.calls import Context
from pagewire_router.grpc_front.response_encoding import encode_responses
from pagewire_router.output.output_buffer import Output
from pagewire_router.output.stepwise_writer import StepwiseWriter

UNREAD_S = 120.0
"""A call whose client takes none of its messages for so long is cut: what waits for it takes memory."""


class MessageWriter(StepwiseWriter):
    """The messages of one call."""

    __slots__ = ()

    def __init__(self, context: Context) -> None:
        super().__init__(context.write, UNREAD_S)

    def write(self, outputs: Sequence[Output]) -> None:
        """Begins to write outputs, after what was given before."""
        self.write_bytes(encode_responses(outputs))
