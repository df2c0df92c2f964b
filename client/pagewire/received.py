"""What has come of a request, so that another server can go on with it when its stream breaks."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from pagewire.events import Event, PromptLogprobs, SequenceFinished, Started, TokenDelta
from pagewire.outputs import Logprob
from pagewire.v1 import inference_pb2


@dataclass(slots=True)
class _Sequence:
    token_ids: list[int] = field(default_factory=list)
    num_text_bytes: int = 0
    cumulative_logprob: float = 0.0
    is_finished: bool = False


class Received:
    """The events of one request so far. What is kept does not change with what callers do to the events."""

    __slots__ = (
        "_num_events",
        "_num_prompt_logprobs",
        "_num_resumed_events",
        "_sequences",
        "_shard_loss_token",
        "_started",
    )

    def __init__(self) -> None:
        self._started: Started | None = None
        self._sequences: dict[int, _Sequence] = {}
        self._num_prompt_logprobs = 0
        self._num_events = 0
        self._num_resumed_events = 0
        self._shard_loss_token = ""

    @property
    def has_output(self) -> bool:
        """Whether anything has come behind Started."""
        return self._num_events > 0

    @property
    def can_resume(self) -> bool:
        """Whether the server can go on with what has come; older servers send no digest, and cannot."""
        return self._started is not None and bool(self._started.prompt_digest)

    def has_progressed(self, *, shard_loss_token: str) -> bool:
        """The stream has broken. Returns whether anything has come since the last time.

        shard_loss_token: what the server says if a shard was lost that ran the request, which holds until something
        comes; otherwise empty.
        """
        has_progressed = self._num_events > self._num_resumed_events
        self._num_resumed_events = self._num_events
        if shard_loss_token or has_progressed:
            self._shard_loss_token = shard_loss_token
        return has_progressed

    def take(self, event: Event) -> bool:
        """Takes the next event. Returns whether it is new: Started comes again when a request is resumed."""
        if isinstance(event, TokenDelta):
            self._num_events += 1
            sequence = self._sequences.get(event.index)
            if sequence is None:
                sequence = self._sequences[event.index] = _Sequence()
            sequence.token_ids += event.token_ids
            text = event.text
            sequence.num_text_bytes += len(text) if text.isascii() else len(text.encode())
            if event.logprobs:
                sequence.cumulative_logprob = _sum_of(event.logprobs, sequence.cumulative_logprob)
            return True
        if isinstance(event, Started):
            if self._started is not None:
                return False
            self._started = event
            return True
        self._num_events += 1
        if isinstance(event, PromptLogprobs):
            self._num_prompt_logprobs += len(event.logprobs)
        elif isinstance(event, SequenceFinished):
            self._sequences.setdefault(event.index, _Sequence()).is_finished = True
        return True

    def fill(self, request: inference_pb2.GenerateRequest) -> None:
        """Makes a request go on with what has come; it stays as it is if nothing has."""
        if self._started is None:
            return
        if not self.can_resume:
            # An older server: begins anew with the seed that Started has announced.
            request.sampling_params.seed = self._started.seed
            return
        resume = inference_pb2.Resume(
            model_digest=self._started.model_digest,
            prompt_digest=self._started.prompt_digest,
            seed=self._started.seed,
            num_prompt_logprobs=self._num_prompt_logprobs,
            shard_loss_token=self._shard_loss_token,
            sequences=[
                inference_pb2.ResumedSequence(index=index, finished=True)
                if sequence.is_finished
                else inference_pb2.ResumedSequence(
                    index=index,
                    token_ids=sequence.token_ids,
                    text_bytes_received=sequence.num_text_bytes,
                    cumulative_logprob=sequence.cumulative_logprob,
                )
                for index, sequence in self._sequences.items()
            ],
        )
        request.resume.CopyFrom(resume)


def _sum_of(logprobs: Iterable[dict[int, Logprob]], start: float) -> float:
    """Adds the log-probabilities of sampled tokens one by one, as the server does: the first of each dict."""
    for position in logprobs:
        start += next(iter(position.values())).logprob
    return start
