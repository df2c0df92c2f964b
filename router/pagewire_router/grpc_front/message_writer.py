"""Writes what Generate answers to the stream of one call."""

from collections.abc import Sequence

from pagewire_router.grpc_front.calls import Context
from pagewire_router.grpc_front.response_encoding import encode_responses
from pagewire_router.output.output_buffer import Output
from pagewire_router.output.stepwise_writer import StepwiseWriter


class MessageWriter(StepwiseWriter):
    """The messages of one call."""

    __slots__ = ()

    def __init__(self, context: Context) -> None:
        super().__init__(context.write)

    def write(self, outputs: Sequence[Output]) -> None:
        """Begins to write outputs, after what was given before."""
        self.write_bytes(encode_responses(outputs))
