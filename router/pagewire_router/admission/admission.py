"""From a GenerateRequest to a Request that the engine can run, or a clear refusal."""

import math
import time

import grpc
from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.sendable_text import shorten

from pagewire_router.admission.prompt import Prompt, PromptEncoder
from pagewire_router.admission.validation import (
    Limits,
    Violations,
    bound_by_context,
    check_request,
    resolve_sampling_params,
)
from pagewire_router.errors import ModelNotFound
from pagewire_router.grpc_front.arrival import call_arrival_s
from pagewire_router.output.request_output import Notified, RequestOutput
from pagewire_router.request import Request
from pagewire_router.text.detokenizer import Detokenizer
from pagewire_router.text.template_process import TemplateProcess
from pagewire_router.text.tokenizer import Tokenizer
from pagewire_router.timeline import Timeline, TraceContext, current_timeline

Context = grpc.aio.ServicerContext[bytes, bytes]


class Admission:
    """Checks requests against the served model's limits and encodes their prompts."""

    def __init__(
        self,
        model: shard_pb2.ShardInfo,
        limits: Limits,
        tokenizer: Tokenizer | None,
        max_request_time_s: float | None = None,
        *,
        template_process: TemplateProcess | None = None,
        is_tracing: bool = False,
    ) -> None:
        """
        Args:
            max_request_time_s: no request may run for longer; None: no limit but its own deadline.
            template_process: renders chat templates that clients send; None: such templates are refused.
            is_tracing: this router decides which requests are traced; else clients and shards do.
        """
        self._model = model
        self._is_tracing = is_tracing
        self._max_request_time_s = math.inf if max_request_time_s is None else max_request_time_s
        self._limits = limits
        self._tokenizer = tokenizer
        self.prompts = PromptEncoder(tokenizer, limits, template_process)

    async def admit(
        self, message: inference_pb2.GenerateRequest, request_id: str, context: Context, notified: Notified
    ) -> tuple[Request, RequestOutput]:
        """The request and the sink of its output. Raises InvalidRequest, RequestTooLong, ModelNotFound."""
        deadline_s = self._deadline_s(context)
        timeline = current_timeline.get()
        if timeline is not None:
            timeline.message, timeline.model = message, self._model.model
        if message.HasField("model") and message.model != self._model.model:
            raise ModelNotFound(f"model {shorten(message.model, 100)!r} is not served here; {self._model.model!r} is")
        params = self._check(message)
        prompt = await self._encode(message, timeline)
        bound_by_context(params, len(prompt.token_ids), self._limits)
        eos_token_ids = () if params.ignore_eos else self._limits.eos_token_ids
        output = self._output(params, prompt.token_ids, eos_token_ids, notified)
        request = Request(
            request_id=request_id,
            prompt_token_ids=prompt.token_ids,
            prompt_text=prompt.text if message.return_prompt_token_ids and message.HasField("chat") else None,
            params=params,
            sink=output,
            arrival_s=call_arrival_s(),
            deadline_s=deadline_s,
            priority=message.priority,
            cache_salt=message.cache_salt,
            trace_context=self._trace_context(timeline, context),
            timeline=timeline,
            eos_token_ids=eos_token_ids,
        )
        if timeline is not None:
            timeline.request, timeline.output = request, output
        return request, output

    def _trace_context(self, timeline: Timeline | None, context: Context) -> TraceContext | None:
        """What the shards' spans belong to: the call's own span, or where nothing is traced what the client sent."""
        if timeline is not None:
            return timeline.trace_context
        if self._is_tracing:
            return None
        metadata = dict(context.invocation_metadata() or ())
        traceparent = metadata.get("traceparent")
        return TraceContext(str(traceparent), str(metadata.get("tracestate", ""))) if traceparent else None

    def _deadline_s(self, context: Context) -> float | None:
        """The client's deadline or the server's limit, whichever comes first."""
        remaining_s = context.time_remaining()
        deadline_s = math.inf if remaining_s is None else time.monotonic() + remaining_s
        deadline_s = min(deadline_s, call_arrival_s() + self._max_request_time_s)
        return None if deadline_s == math.inf else deadline_s

    async def _encode(self, message: inference_pb2.GenerateRequest, timeline: Timeline | None) -> Prompt:
        if timeline is None or message.WhichOneof("prompt") not in ("text", "chat"):
            return await self.prompts.encode(message)
        began_ns = time.time_ns()
        try:
            return await self.prompts.encode(message)
        finally:
            timeline.tokenized_ns = (began_ns, time.time_ns())

    def _check(self, message: inference_pb2.GenerateRequest) -> inference_pb2.SamplingParams:
        violations = Violations()
        check_request(message, violations)
        params = resolve_sampling_params(message.sampling_params, self._limits, violations)
        if params.stop and self._tokenizer is None:
            violations.add("sampling_params.stop", "needs a tokenizer, which the model lacks; use stop_token_ids")
        violations.raise_if_any()
        return params

    def _output(
        self,
        params: inference_pb2.SamplingParams,
        prompt_token_ids: list[int],
        eos_token_ids: tuple[int, ...],
        notified: Notified,
    ) -> RequestOutput:
        tokenizer = self._tokenizer
        if tokenizer is None or not params.detokenize:
            return RequestOutput(params, len(prompt_token_ids), eos_token_ids, None, notified)

        def new_detokenizer() -> Detokenizer:
            return tokenizer.detokenizer(
                prompt_token_ids,
                skip_special_tokens=params.skip_special_tokens,
                spaces_between_special_tokens=params.spaces_between_special_tokens,
            )

        return RequestOutput(params, len(prompt_token_ids), eos_token_ids, new_detokenizer, notified, tokenizer.piece)
