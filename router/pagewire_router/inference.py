"""The Inference service without a transport: what every front calls, on messages of inference.proto.

A front turns what it receives into a message and a Call, and what it gets back into answers. RouterError says what a
client is told when a call fails; failure_of() makes one of whatever a call has raised.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from pagewire.v1 import inference_pb2

from pagewire_router.admission.admission import Admission
from pagewire_router.admission.call import Call
from pagewire_router.admission.client_limits import ClientLimits, Usage
from pagewire_router.admission.generation_config import model_defaults, served_digest
from pagewire_router.admission.resume import prompt_digest
from pagewire_router.admission.validation import (
    Limits,
    Violations,
    check_num_token_ids,
    check_request_id,
    check_token_ids,
)
from pagewire_router.config import RouterConfig
from pagewire_router.errors import FieldViolation, InvalidRequest, RequestAlreadyExists, RouterError
from pagewire_router.metrics.request_metrics import Metrics
from pagewire_router.metrics.request_timer import RequestTimer
from pagewire_router.output.output_buffer import Output, OutputBuffer
from pagewire_router.output.pacer import PacedStream, Pacer
from pagewire_router.request import Request
from pagewire_router.request_runner import RequestRunner
from pagewire_router.text.template_process import TemplateProcess
from pagewire_router.text.text_threads import CHARS_PER_TOKEN
from pagewire_router.text.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
_UNLIMITED: AbstractContextManager[None] = nullcontext()
"""The usage of a request where clients have no limits."""


class OutputWriter(Protocol):
    """Writes the outputs of one request. See grpc_front/message_writer.py."""

    def write(self, outputs: Sequence[Output]) -> None:
        """Begins to write outputs."""

    def is_idle(self) -> bool:
        """Whether all outputs that were begun are written."""

    def when_idle(self, callback: Callable[[], object]) -> None:
        """Calls back once when they are, or when a write has failed."""

    async def drain(self) -> None:
        """Returns when they are."""


class GenerateStream:
    """The output of a running request, on its way to a writer."""

    def __init__(
        self, started: inference_pb2.Started, output: OutputBuffer, stream: PacedStream, timer: RequestTimer
    ) -> None:
        self.started = started
        self._output = output
        self._stream = stream
        self._timer = timer
        self._ended: asyncio.Future[None] | None = None
        """Done when the last output was given to the writer, or cannot be. Set while write_to() waits for that."""

    async def write_to(self, writer: OutputWriter) -> None:
        """Writes outputs as they become due, until the end of the last sequence. No task is woken for each of them.

        If the request fails, what came before is written, and the RouterError raised.
        """
        self._ended = asyncio.get_running_loop().create_future()
        self._stream.call_when_due(lambda: self._write(writer))
        try:
            await self._ended
        finally:
            self._ended = None  # It would hold an error whose traceback holds this.
        await writer.drain()
        if self._output.error is not None:
            raise self._output.error

    def _write(self, writer: OutputWriter) -> bool:
        """Writes what is there, now or as soon as the client has taken what was written before.

        Returns whether a write was begun.
        """
        output = self._output
        if self._ended is None or self._ended.done():
            return False
        try:
            if not writer.is_idle():
                writer.when_idle(lambda: self._write(writer))
                return False
            outputs = output.take()
            if outputs:
                writer.write(outputs)
                self._timer.on_written(output.num_tokens)
            if output.error is not None or output.is_all_taken:
                self._ended.set_result(None)
            return bool(outputs)
        except Exception as error:
            self._ended.set_exception(error)
            return False


@dataclass(frozen=True, slots=True)
class CompletedRequest:
    """A request whose sequences have all ended."""

    started: inference_pb2.Started
    prompt_logprobs: Iterator[inference_pb2.PromptLogprobs]
    """Parts of the prompt in order, each made when it is asked for; none if they were not asked for."""
    completions: Iterator[inference_pb2.Completion]
    """Completions in order, each made when it is asked for."""


class Inference:
    """The Inference service over one started RequestRunner. Everything runs on the event loop's thread."""

    def __init__(
        self,
        config: RouterConfig,
        runner: RequestRunner,
        tokenizer: Tokenizer | None,
        pacer: Pacer,
        metrics: Metrics,
        template_process: TemplateProcess | None = None,
        limits: ClientLimits | None = None,
    ) -> None:
        """
        Args:
            tokenizer: None if the model came without one; then only token ids are served.
            template_process: renders chat templates that clients send; None: such templates are refused.
            limits: of single clients; None: there are none.
        """
        self._client_limits = limits
        self._config = config
        self._runner = runner
        self._model = runner.model
        self._tokenizer = tokenizer
        self._pacer = pacer
        self._metrics = metrics
        self._model_defaults = inference_pb2.SamplingParams()
        if config.generation_config == "auto":
            self._model_defaults = model_defaults(runner.files)
        self.limits = Limits.of(
            runner.model,
            max_n=config.max_n,
            max_logprobs=config.max_logprobs,
            model_defaults=self._model_defaults,
        )
        self._digest = served_digest(runner.model.model_digest, self._model_defaults)
        self._admission = Admission(
            runner.model,
            self.limits,
            tokenizer,
            self._digest,
            config.max_request_time_s,
            template_process=template_process,
        )
        self._live_request_ids: set[str] = set()

    @asynccontextmanager
    async def generate(
        self, message: inference_pb2.GenerateRequest, call: Call, pacer: Pacer | None = None
    ) -> AsyncIterator[GenerateStream]:
        """Runs a request and streams its output. The request is aborted if the context ends before its output.

        pacer: paces the writes of the stream; None: the one that this service was given.
        """
        request_id = self._reserve_id(message.request_id)
        try:
            with self._usage(call) as usage, (pacer or self._pacer).open() as stream:
                request, output = await self._admission.admit(message, request_id, call, stream)
                timer = self._submit(request, output, usage)
                try:
                    yield GenerateStream(self._started(message, request), output, stream, timer)
                finally:
                    self._end(request, output, timer, usage)
        finally:
            self._live_request_ids.discard(request_id)

    async def complete(self, message: inference_pb2.GenerateRequest, call: Call) -> CompletedRequest:
        """Runs a request to its end. The request is aborted if the task is cancelled."""
        if message.HasField("resume"):
            raise InvalidRequest([FieldViolation("resume", "is for Generate alone: Complete has no stream to resume")])
        end = _EndListener()
        request_id = self._reserve_id(message.request_id)
        try:
            with self._usage(call) as usage:
                request, output = await self._admission.admit(message, request_id, call, end)
                timer = self._submit(request, output, usage)
                try:
                    while not output.is_done:
                        await end.wait()
                    timer.on_written(output.num_tokens)
                finally:
                    self._end(request, output, timer, usage)
        finally:
            self._live_request_ids.discard(request_id)
        if output.error is not None:
            raise output.error
        started = self._started(message, request)
        return CompletedRequest(started, output.take_prompt_logprobs(), output.take_completions())

    async def tokenize(self, message: inference_pb2.TokenizeRequest, call: Call) -> inference_pb2.TokenizeResponse:
        """Encodes as generate() would."""
        kind = message.WhichOneof("prompt")
        prompts = self._admission.prompts
        if kind is None:
            raise InvalidRequest([FieldViolation("prompt", "is missing; set text or chat")])
        if kind == "chat":
            prompt = await prompts.encode_chat(message.chat, call.caller)
        else:
            add_special_tokens = not message.HasField("add_special_tokens") or message.add_special_tokens
            prompt = await prompts.encode_text(message.text, call.caller, add_special_tokens=add_special_tokens)
        return inference_pb2.TokenizeResponse(token_ids=prompt.token_ids, text=prompt.text)

    async def detokenize(
        self, message: inference_pb2.DetokenizeRequest, call: Call
    ) -> inference_pb2.DetokenizeResponse:
        """Decodes a whole sequence of tokens, which is no longer than the context."""
        check_num_token_ids(len(message.token_ids), "token_ids", self.limits)
        token_ids = list(message.token_ids)
        violations = Violations()
        check_token_ids(token_ids, "token_ids", self.limits, violations)
        violations.raise_if_any()
        skip_special_tokens = not message.HasField("skip_special_tokens") or message.skip_special_tokens
        tokenizer = self._admission.prompts.tokenizer_for("token_ids")
        text = await tokenizer.run_on_thread(
            lambda ids: tokenizer.decode(ids, skip_special_tokens=skip_special_tokens),
            token_ids,
            num_chars=len(token_ids) * CHARS_PER_TOKEN,
            caller=call.caller,
        )
        return inference_pb2.DetokenizeResponse(text=text)

    def check_model(self, name: str | None) -> None:
        """Raises ModelNotFound if a model is named that is not the served one."""
        self._admission.check_model(name)

    def get_model(self) -> inference_pb2.Model:
        """Describes the served model and its limits."""
        return inference_pb2.Model(
            name=self._model.model,
            digest=self._digest,
            architecture=self._model.architecture,
            max_model_len=self._model.max_model_len,
            vocab_size=self._model.vocab_size,
            dtype=self._model.dtype,
            supports_chat=self._tokenizer is not None and bool(self._tokenizer.chat_templates),
            eos_token_ids=self._model.eos_token_ids,
            max_n=self.limits.max_n,
            max_logprobs=self.limits.max_logprobs,
            max_queued_requests=self._config.max_queued_requests,
            max_queued_tokens=self._config.max_queued_tokens,
            supports_structured_outputs=self.limits.serves_grammars,
            default_sampling_params=self._model_defaults,
            max_beam_width=self.limits.max_beam_width,
        )

    def _started(self, message: inference_pb2.GenerateRequest, request: Request) -> inference_pb2.Started:
        return inference_pb2.Started(
            request_id=request.request_id,
            model=self._model.model,
            model_digest=self._digest,
            seed=request.params.seed,
            num_prompt_tokens=len(request.prompt_token_ids),
            prompt_token_ids=request.prompt_token_ids if message.return_prompt_token_ids else (),
            prompt_text=request.prompt_text,
            prompt_digest=prompt_digest(request.prompt_token_ids),
        )

    def _reserve_id(self, request_id: str) -> str:
        """Holds the request's id, picked if it has none, until it is discarded. Raises RequestAlreadyExists."""
        check_request_id(request_id)
        request_id = request_id or uuid.uuid4().hex
        if request_id in self._live_request_ids:
            raise RequestAlreadyExists(f"a request with the id {request_id!r} is alive; choose another id")
        self._live_request_ids.add(request_id)
        return request_id

    def _usage(self, call: Call) -> AbstractContextManager[Usage | None]:
        """Counts a request of the caller. Raises RateLimited."""
        return _UNLIMITED if self._client_limits is None else self._client_limits.request(call.caller)

    def _submit(self, request: Request, output: OutputBuffer, usage: Usage | None) -> RequestTimer:
        """Submits the request, unless it is resumed and all of it was known. What was submitted must go to _end()."""
        if usage is not None:
            request.weight = usage.weight
            usage.on_prompt(len(request.prompt_token_ids))
        if not output.is_done:
            self._runner.submit(request)
        return RequestTimer(self._metrics, request)

    def _end(self, request: Request, output: OutputBuffer, timer: RequestTimer, usage: Usage | None) -> None:
        """Aborts the request if its client has gone before it has ended, and observes its end."""
        if usage is not None:
            usage.on_generated(output.num_tokens)
        if not output.is_done:
            self._runner.abort(request)
        timer.on_end(output)


class _EndListener:
    """Waits for the end of a sequence, or of the whole request."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """New tokens: nobody is woken."""

    def notify_now(self) -> None:
        """A sequence has ended, or the request has failed."""
        self._event.set()

    async def wait(self) -> None:
        """Returns at the next end."""
        await self._event.wait()
        self._event.clear()


def failure_of(error: Exception) -> RouterError:
    """The error that the client of a failed call is told. Logs an unknown exception, so call it within its handler."""
    if isinstance(error, RouterError):
        # The frames of its traceback would keep the request's message until the garbage collector comes.
        return error.with_traceback(None)
    if isinstance(error, RecursionError | SyntaxError | UnicodeError):
        # Only text or nesting that the client sent can raise these.
        description = f"nested too deeply or no valid text ({type(error).__name__})"
        return InvalidRequest([FieldViolation("prompt", description)])
    _log.exception("A call failed for a reason of ours")
    return RouterError("the router failed on this request; its log says more")
