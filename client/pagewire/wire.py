"""Converts between Python values and protobuf messages."""

import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import repeat

from pagewire.beam_search import BeamSearchOutput, BeamSearchParams, BeamSearchSequence
from pagewire.errors import InvalidRequest
from pagewire.events import Event, PromptLogprobs, SequenceFinished, Started, TokenDelta
from pagewire.outputs import CompletionOutput, CompletionOutputs, FinishReason, Logprob, RequestOutput, Usage
from pagewire.prompts import Prompt, fill_prompt, has_token_ids, prompt_salt, prompt_text
from pagewire.sampling_params import SamplingParams
from pagewire.text import is_encodable
from pagewire.v1 import inference_pb2

_FINISH_REASONS: dict[int, FinishReason] = {
    inference_pb2.FINISH_REASON_STOP: "stop",
    inference_pb2.FINISH_REASON_LENGTH: "length",
    inference_pb2.FINISH_REASON_ABORT: "abort",
}


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """Options of a request other than its prompt and sampling parameters."""

    request_id: str = ""
    """Unique among the requests that are alive; empty: the server picks one."""
    model: str | None = None
    """Must be the served model's name, if given."""
    priority: int = 0
    """Lower runs first."""
    cache_salt: str | None = None
    """Cached prefixes are shared only among requests of one salt."""
    add_special_tokens: bool = True
    """Adds the tokenizer's special tokens to a text prompt."""


def build_request(
    prompt: Prompt,
    params: SamplingParams | BeamSearchParams | None,
    options: RequestOptions,
    *,
    return_prompt_token_ids: bool = False,
) -> inference_pb2.GenerateRequest:
    """Returns the wire form of a request.

    Raises:
        InvalidRequest: the prompt is malformed, or an option is of another type or cannot be sent.
    """
    if params is not None and not isinstance(params, SamplingParams | BeamSearchParams):
        raise InvalidRequest.of_field("sampling_params", f"a {type(params).__name__} given, accepted: SamplingParams")
    request = inference_pb2.GenerateRequest()
    salt = prompt_salt(prompt)
    options = options if salt is None else replace(options, cache_salt=salt)
    for name in ("request_id", "model", "cache_salt"):
        if (text := getattr(options, name)) is not None:
            if not isinstance(text, str) or not is_encodable(text):
                raise InvalidRequest.of_field(name, f"{text!r} given, accepted: text without lone surrogates")
            setattr(request, name, text)
    fill_prompt(request, prompt)
    if isinstance(params, BeamSearchParams):
        request.beam_search_params.CopyFrom(params.to_proto())
    elif params is not None:
        request.sampling_params.CopyFrom(params.to_proto())
    if options.priority is not None and options.priority != 0:
        try:
            request.priority = operator.index(options.priority)
        except (TypeError, ValueError):
            raise InvalidRequest.of_field(
                "priority", f"{options.priority!r} given, accepted: a 32-bit integer"
            ) from None
    if not options.add_special_tokens:
        request.add_special_tokens = False
    if return_prompt_token_ids:
        request.return_prompt_token_ids = True
    return request


def decode_event(data: bytes) -> Event | None:
    """Decodes one message of a Generate stream; None for a kind of event that only newer servers know."""
    message = inference_pb2.GenerateResponse.FromString(data)
    kind = message.WhichOneof("event")
    if kind == "delta":
        delta = message.delta
        return TokenDelta(
            delta.index, delta.text, list(delta.token_ids), _logprobs(delta.logprobs) if delta.logprobs else None
        )
    if kind == "finished":
        finished = message.finished
        return SequenceFinished(
            finished.index,
            _finish_reason(finished),
            _stop_reason(finished),
            _usage(finished.usage),
            _cumulative_logprob(finished),
        )
    if kind == "prompt_logprobs":
        part = message.prompt_logprobs
        return PromptLogprobs(part.first_position, _logprobs(part.logprobs))
    if kind == "started":
        started = message.started
        return Started(
            started.request_id,
            started.model,
            started.seed,
            started.num_prompt_tokens,
            list(started.prompt_token_ids),
            started.model_digest,
            started.prompt_digest,
        )
    return None


def decode_result(
    result: inference_pb2.GenerateResult, prompt: Prompt, request: inference_pb2.GenerateRequest
) -> RequestOutput:
    """Decodes the whole answer to one prompt, and to the request that was made of it."""
    started = result.started
    text = started.prompt_text if started.HasField("prompt_text") else prompt_text(prompt)
    token_ids = list(prompt["prompt_token_ids"] if has_token_ids(prompt) else started.prompt_token_ids)
    outputs = CompletionOutputs(_decode_completion(completion) for completion in result.completions)
    output = RequestOutput(started.request_id, text, token_ids, outputs, seed=started.seed)
    if request.sampling_params.HasField("prompt_logprobs"):
        output.prompt_logprobs = [None, *_logprobs(result.prompt_logprobs)]
    return output


def decode_beams(
    result: inference_pb2.GenerateResult, prompt_token_ids: list[int], text: str | None, *, keeps_last: bool
) -> BeamSearchOutput:
    """Decodes the answer to a beam search.

    Args:
        text: the prompt's; None: no text was asked for.
        keeps_last: the token that ended a beam is among its tokens.
    """
    sequences = []
    for completion in result.completions:
        finished, token_ids = completion.finished, list(completion.token_ids)
        if finished.finish_reason == inference_pb2.FINISH_REASON_STOP and not keeps_last:
            token_ids.pop()
        sequences.append(
            BeamSearchSequence(
                tokens=prompt_token_ids + token_ids,
                cum_logprob=finished.cumulative_logprob,
                beam_score=finished.beam_score,
                text=None if text is None else text + completion.text,
                finish_reason=_finish_reason(finished),
                stop_reason=_stop_reason(finished),
            )
        )
    return BeamSearchOutput(sequences)


def _decode_completion(completion: inference_pb2.Completion) -> CompletionOutput:
    finished = completion.finished
    output = CompletionOutput(completion.index, completion.text, list(completion.token_ids))
    if completion.logprobs:
        output.logprobs = _logprobs(completion.logprobs)
        output.cumulative_logprob = _cumulative_logprob(finished)
        if output.cumulative_logprob is None:  # A server of before this field.
            output.cumulative_logprob = sum(entry.logprob for entry in completion.logprobs)
    output.finish_reason = _finish_reason(finished)
    output.stop_reason = _stop_reason(finished)
    output.usage = _usage(finished.usage)
    return output


def _logprobs(positions: Iterable[inference_pb2.TokenLogprobs]) -> list[dict[int, Logprob]]:
    decoded = []
    for position in positions:
        # The sampled token comes first; if it is among the most probable too, it is not repeated.
        text = position.token_text if position.HasField("token_text") else None
        entry = {position.token_id: Logprob(position.logprob, position.rank, text)}
        texts = position.top_token_texts or repeat(None)
        best = zip(position.top_token_ids, position.top_logprobs, texts, strict=False)
        for rank, (token_id, logprob, text) in enumerate(best, 1):
            entry.setdefault(token_id, Logprob(logprob, rank, text))
        decoded.append(entry)
    return decoded


def _finish_reason(finished: inference_pb2.Finished) -> FinishReason:
    return _FINISH_REASONS.get(finished.finish_reason, "abort")


def _stop_reason(finished: inference_pb2.Finished) -> str | int | None:
    kind = finished.WhichOneof("stop_reason")
    if kind is None:
        return None
    return finished.stop_string if kind == "stop_string" else finished.stop_token_id


def _cumulative_logprob(finished: inference_pb2.Finished) -> float | None:
    return finished.cumulative_logprob if finished.HasField("cumulative_logprob") else None


def _usage(usage: inference_pb2.Usage) -> Usage:
    return Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
