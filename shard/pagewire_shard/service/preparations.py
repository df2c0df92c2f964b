"""Prepare and Forget: what plans name by name is made ready beside them, and answered on the stream."""

import logging

import grpc
from pagewire.v1 import shard_pb2

from pagewire_shard.errors import InvalidMessage
from pagewire_shard.grammar.grammars import Grammars, Prepared
from pagewire_shard.recording.recorder import Recorder
from pagewire_shard.service.plan_stream import PlanStream

logger = logging.getLogger(__name__)


class Preparations:
    """Passes the router's wishes on. Called on the event loop; nothing here waits.

    The names end with the epoch of the engine, on the step thread: plans that wait there may still name them when the
    stream has broken.
    """

    def __init__(self, grammars: Grammars | None, recorder: Recorder | None = None) -> None:
        """grammars: None: this shard serves no grammars, and every Prepare is answered so. recorder: hears of them."""
        self._grammars = grammars
        self._recorder = recorder

    def prepare(self, stream: PlanStream, message: shard_pb2.Prepare) -> None:
        """Begins to prepare what a message asks for. Raises InvalidMessage."""
        if not message.name:
            raise InvalidMessage("Prepare has no name")
        if message.WhichOneof("what") != "grammar":
            raise InvalidMessage(f"Prepare {message.name!r} asks for nothing that this shard knows")
        if self._grammars is None:
            reason = "the shard serves no grammars: it has no tokenizer, or one that they cannot be served with"
            answer(stream, Prepared(message.name, grpc.StatusCode.UNIMPLEMENTED, reason))
            return
        if self._recorder is not None:
            self._recorder.on_prepare(message)
        self._grammars.prepare(message.name, message.grammar, lambda prepared: answer(stream, prepared))

    def forget(self, message: shard_pb2.Forget) -> None:
        """No plan will name these again."""
        if self._grammars is not None:
            self._grammars.forget(message.names)
        if self._recorder is not None:
            self._recorder.on_forget(message.names)


def answer(stream: PlanStream, prepared: Prepared) -> None:
    """Queues the answer. Called on any thread."""
    code, _ = prepared.code.value
    message = shard_pb2.Prepared(name=prepared.name, code=code, message=prepared.message)
    stream.post(shard_pb2.ShardMessage(prepared=message).SerializeToString(), is_result=False)
