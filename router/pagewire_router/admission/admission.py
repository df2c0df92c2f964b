"""Turns a GenerateRequest into a Request that can run, or refuses it."""

import math
import time

from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.sendable_text import shorten

from pagewire_router.admission.bad_words import BadWords, TokenSequences
from pagewire_router.admission.beam_search import beam_settings, resolve_beam_search_params
from pagewire_router.admission.call import Call
from pagewire_router.admission.prompt import Prompt, PromptEncoder
from pagewire_router.admission.resume import (
    check_model_unchanged,
    check_prompt_unchanged,
    check_received,
    resume_request,
    resume_seed,
)
from pagewire_router.admission.structured_outputs import check_structured_outputs, follow_prompt, grammar_name
from pagewire_router.admission.validation import (
    Limits,
    Violations,
    bound_by_context,
    check_prompt_logprobs,
    check_request,
    num_kept_tokens,
    resolve_sampling_params,
)
from pagewire_router.errors import ModelNotFound
from pagewire_router.output.output_buffer import OutputBuffer, OutputListener
from pagewire_router.output.prompt_output import PromptOutput
from pagewire_router.request import Request
from pagewire_router.text.detokenizer import Detokenizer
from pagewire_router.text.template_process import TemplateProcess
from pagewire_router.text.tokenizer import Tokenizer


class Admission:
    """Checks requests against the served model's limits and encodes their prompts."""

    def __init__(
        self,
        model: shard_pb2.ShardInfo,
        limits: Limits,
        tokenizer: Tokenizer | None,
        model_digest: bytes,
        max_request_time_s: float | None = None,
        *,
        template_process: TemplateProcess | None = None,
    ) -> None:
        """
        Args:
            model_digest: what clients are told, and tell when they resume a request.
            max_request_time_s: longest time from arrival to end; None: only clients set deadlines.
            template_process: renders chat templates that clients send; None: such templates are refused.
        """
        self._model = model
        self._model_digest = model_digest
        self._max_request_time_s = math.inf if max_request_time_s is None else max_request_time_s
        self._limits = limits
        self._tokenizer = tokenizer
        self._bad_words = BadWords(tokenizer, limits) if tokenizer else None
        self.prompts = PromptEncoder(tokenizer, limits, template_process)

    async def admit(
        self, message: inference_pb2.GenerateRequest, request_id: str, call: Call, listener: OutputListener
    ) -> tuple[Request, OutputBuffer]:
        """The request and its output, which is done if the request is resumed and nothing of it is left to run.

        Raises InvalidRequest, RequestTooLong, ModelNotFound, ModelChanged, PromptChanged, QueueFull, Unavailable.
        """
        trace = call.trace
        if trace is not None:
            trace.message, trace.model = message, self._model.model
        self.check_model(message.model if message.HasField("model") else None)
        params = self._check(message)
        resume = message.resume if message.HasField("resume") else None
        if resume is not None:
            check_model_unchanged(resume, self._model_digest)
            resume_seed(resume, params, is_given=message.sampling_params.HasField("seed"))
        prompt = await self._encode(message, call, num_kept_tokens(params, self._limits))
        if params.structured_outputs.HasField("reasoning_start"):
            follow_prompt(params.structured_outputs, self.prompts.end_of(prompt))
        bad_words: TokenSequences = ()
        if self._bad_words is not None and params.bad_words:
            bad_words = await self._bad_words.token_sequences(params.bad_words, call.caller)
        bound_by_context(params, len(prompt.token_ids), self._limits)
        check_prompt_logprobs(params, len(prompt.token_ids))
        if resume is not None:
            check_prompt_unchanged(resume, prompt.token_ids)
            check_received(resume, params, len(prompt.token_ids), self._limits)
        eos_token_ids = () if params.ignore_eos else self._limits.eos_token_ids
        beams = None
        if message.HasField("beam_search_params"):
            beams = beam_settings(message.beam_search_params, params, eos_token_ids, self._limits)
        output = self._output(params, prompt.token_ids, eos_token_ids, listener)
        request = Request(
            request_id=request_id,
            prompt_token_ids=prompt.token_ids,
            prompt_text=prompt.text if message.return_prompt_token_ids and message.HasField("chat") else None,
            params=params,
            sink=output,
            arrival_s=call.arrival_s,
            deadline_s=self._deadline_s(call),
            priority=message.priority,
            client=call.caller.owner,
            resumes=message.resumes,
            cache_salt=message.cache_salt,
            grammar=grammar_name(params.structured_outputs) if params.HasField("structured_outputs") else "",
            trace_context=call.trace_context,
            timeline=None if trace is None else trace.timeline,
            eos_token_ids=eos_token_ids,
            bad_words=bad_words,
            beams=beams,
        )
        if resume is not None:
            await resume_request(resume, request, output)
        if trace is not None:
            trace.request, trace.output = request, output
            trace.timeline.num_prompt_tokens = len(prompt.token_ids)
        return request, output

    def check_model(self, name: str | None) -> None:
        """Raises ModelNotFound if a model is named that is not the served one."""
        if name is not None and name != self._model.model:
            raise ModelNotFound(f"model {shorten(name, 100)!r} is not served here; {self._model.model!r} is")

    def _deadline_s(self, call: Call) -> float | None:
        """The client's deadline or the server's limit, whichever comes first."""
        client_s = math.inf if call.deadline_s is None else call.deadline_s
        deadline_s = min(client_s, call.arrival_s + self._max_request_time_s)
        return None if deadline_s == math.inf else deadline_s

    async def _encode(self, message: inference_pb2.GenerateRequest, call: Call, num_kept_tokens: int | None) -> Prompt:
        if call.trace is None or message.WhichOneof("prompt") not in ("text", "chat"):
            return await self.prompts.encode(message, call.caller, num_kept_tokens)
        began_ns = time.time_ns()
        try:
            return await self.prompts.encode(message, call.caller, num_kept_tokens)
        finally:
            call.trace.timeline.tokenized_ns = (began_ns, time.time_ns())

    def _check(self, message: inference_pb2.GenerateRequest) -> inference_pb2.SamplingParams:
        violations = Violations()
        check_request(message, violations)
        if message.HasField("beam_search_params"):
            params = resolve_beam_search_params(message.beam_search_params, self._limits, violations)
        else:
            params = resolve_sampling_params(message.sampling_params, self._limits, violations)
        if params.HasField("structured_outputs"):
            name = f"{message.WhichOneof('decoding')}.structured_outputs"
            check_structured_outputs(params.structured_outputs, self._limits, violations, name)
        if self._tokenizer is None:
            if params.stop:
                violations.add("sampling_params.stop", "needs a tokenizer, which the model lacks; use stop_token_ids")
            if params.bad_words:
                violations.add("sampling_params.bad_words", "needs a tokenizer, which the model lacks; use logit_bias")
        violations.raise_if_any()
        return params

    def _output(
        self,
        params: inference_pb2.SamplingParams,
        prompt_token_ids: list[int],
        eos_token_ids: tuple[int, ...],
        listener: OutputListener,
    ) -> OutputBuffer:
        tokenizer = self._tokenizer if params.detokenize else None
        piece_of = tokenizer.piece if tokenizer else None
        prompt = PromptOutput(prompt_token_ids, piece_of) if params.HasField("prompt_logprobs") else None
        if tokenizer is None:
            return OutputBuffer(params, len(prompt_token_ids), eos_token_ids, None, listener, None, prompt)

        def new_detokenizer() -> Detokenizer:
            return tokenizer.detokenizer(
                prompt_token_ids,
                skip_special_tokens=params.skip_special_tokens,
                spaces_between_special_tokens=params.spaces_between_special_tokens,
            )

        return OutputBuffer(params, len(prompt_token_ids), eos_token_ids, new_detokenizer, listener, piece_of, prompt)
