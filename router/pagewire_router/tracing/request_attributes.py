"""Attributes of the span of a call that generates, by the GenAI conventions: parameters, counts, finish reasons.

No attribute holds text of prompt or output.
"""

from opentelemetry.util.types import AttributeValue
from pagewire.v1 import inference_pb2
from pagewire_common.sendable_text import shorten
from pagewire_common.tracing import conventions as names

from pagewire_router.output.output_buffer import OutputBuffer
from pagewire_router.request import Request
from pagewire_router.tracing.call_trace import CallTrace

MAX_CHARS = 256
"""Longest attribute whose text a client has chosen, such as an id."""
_FINISH_REASONS = {
    inference_pb2.FINISH_REASON_STOP: "stop",
    inference_pb2.FINISH_REASON_LENGTH: "length",
    inference_pb2.FINISH_REASON_ABORT: "abort",
}


def request_attributes(trace: CallTrace, *, is_stream: bool) -> dict[str, AttributeValue]:
    """The attributes that are known, if the request was refused; none for calls that do not generate."""
    message, request, output = trace.message, trace.request, trace.output
    if message is None:
        return {}
    attributes: dict[str, AttributeValue] = {
        names.OPERATION_NAME: "chat" if message.HasField("chat") else "text_completion",
        names.PROVIDER_NAME: "pagewire",
        names.REQUEST_MODEL: shorten(message.model if message.HasField("model") else trace.model, MAX_CHARS),
        names.REQUEST_STREAM: is_stream,
    }
    if request is not None and output is not None:
        attributes |= _parameters(message, request) | _answer(request, output, trace.model)
    return attributes


def _parameters(message: inference_pb2.GenerateRequest, request: Request) -> dict[str, AttributeValue]:
    """Parameters with which the request runs, defaults included."""
    params = request.params
    attributes: dict[str, AttributeValue] = {
        names.REQUEST_MAX_TOKENS: params.max_tokens,
        names.REQUEST_TEMPERATURE: params.temperature,
        names.REQUEST_TOP_P: params.top_p,
    }
    if params.top_k:
        attributes[names.REQUEST_TOP_K] = params.top_k
    if params.frequency_penalty:
        attributes[names.REQUEST_FREQUENCY_PENALTY] = params.frequency_penalty
    if params.presence_penalty:
        attributes[names.REQUEST_PRESENCE_PENALTY] = params.presence_penalty
    if params.stop:
        attributes[names.NUM_STOP_STRINGS] = len(params.stop)
    if message.sampling_params.HasField("seed"):
        attributes[names.REQUEST_SEED] = params.seed
    if params.n != 1:
        attributes[names.REQUEST_CHOICE_COUNT] = params.n
    if params.HasField("structured_outputs"):
        is_json = params.structured_outputs.WhichOneof("constraint") in ("json", "json_object")
        attributes[names.OUTPUT_TYPE] = "json" if is_json else "text"
    if request.priority:
        attributes[names.PRIORITY] = request.priority
    return attributes


def _answer(request: Request, output: OutputBuffer, model: str) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        names.RESPONSE_ID: shorten(request.request_id, MAX_CHARS),
        names.RESPONSE_MODEL: model,
        names.USAGE_INPUT_TOKENS: len(request.prompt_token_ids),
        names.USAGE_OUTPUT_TOKENS: output.num_tokens,
    }
    reasons = [_FINISH_REASONS[reason] for reason in output.finish_reasons() if reason in _FINISH_REASONS]
    if reasons:
        attributes[names.RESPONSE_FINISH_REASONS] = reasons
    return attributes
