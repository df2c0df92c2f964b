"""POST /v1/chat/completions."""

import time
from dataclasses import replace
from typing import Any

from pagewire.v1 import inference_pb2

from pagewire_router.http_front.answers import Generator, stream_answer
from pagewire_router.http_front.beam_fields import BEAM_FIELDS, search_beams
from pagewire_router.http_front.chat_answer import ChatAnswer
from pagewire_router.http_front.chunks import AnswerOptions
from pagewire_router.http_front.errors import HttpError, wrong
from pagewire_router.http_front.exchange import Exchange
from pagewire_router.http_front.fields import (
    ANYTHING,
    BOOLEAN,
    OBJECT,
    OBJECTS,
    STRING,
    STRINGS,
    Field,
    FieldTable,
    choice_of,
    one_of,
)
from pagewire_router.http_front.names import naming, renaming
from pagewire_router.http_front.sampling_fields import (
    REFUSED,
    REQUEST,
    SAMPLING,
    TOP_LOGPROBS,
    WITHOUT_EFFECT,
    check_prompt_logprobs,
    constraint_field,
    generate_request,
    parameter_field,
)
from pagewire_router.http_front.turns import AUTO, NONE, REQUIRED, Turn, check_num_parts
from pagewire_router.parsing.choice import OutputParsers

PATH = "/v1/chat/completions"
_CONTENT_FORMATS = {
    "auto": inference_pb2.CHAT_CONTENT_FORMAT_UNSPECIFIED,
    "string": inference_pb2.CHAT_CONTENT_FORMAT_STRING,
    "openai": inference_pb2.CHAT_CONTENT_FORMAT_OPENAI,
}
TEMPLATE_FIELDS = (
    Field("add_generation_prompt", BOOLEAN, "Ends the prompt with what opens the assistant's turn."),
    Field("continue_final_message", BOOLEAN, "Leaves the last message open, so that the model continues it."),
    Field("chat_template", STRING, "Name of one of the model's templates, or a template if the server takes those."),
    Field("chat_template_kwargs", OBJECT, "Further variables for the template."),
    Field("chat_template_content_format", choice_of(*_CONTENT_FORMATS), "How content is given to the template."),
    Field("documents", OBJECTS, "Documents for the template."),
    Field("add_special_tokens", BOOLEAN, "The template writes special tokens.", only=(False,)),
)
"""Fields that say how a conversation becomes a prompt."""
FIELDS = FieldTable(
    Field("messages", OBJECTS, "The conversation, oldest message first.", is_required=True),
    parameter_field("max_tokens", "max_completion_tokens"),
    replace(parameter_field("max_tokens"), doc="The older name of max_completion_tokens.", sets=None),
    Field("logprobs", BOOLEAN, "Returns the log-probability of each token."),
    parameter_field("prompt_logprobs"),
    Field("top_logprobs", TOP_LOGPROBS, "Most probable tokens to return for each token."),
    Field("tools", OBJECTS, "Functions that the model may call."),
    Field("tool_choice", one_of(choice_of(AUTO, NONE, REQUIRED), OBJECT), "Whether it may, or must, call one."),
    Field("parallel_tool_calls", BOOLEAN, "Allows several calls in one answer."),
    Field("reasoning_effort", STRING, "A variable for the template."),
    Field("include_reasoning", BOOLEAN, "Tells the reasoning."),
    Field("echo", BOOLEAN, "Not served.", only=(False,)),
    Field("verbosity", STRING, "Not served.", only=("medium",)),
    Field("modalities", STRINGS, "Text is served.", only=(["text"],)),
    Field("return_prompt_text", BOOLEAN, "Not served.", only=(False,)),
    Field("audio", ANYTHING, "Not served.", only=()),
    Field("prediction", ANYTHING, "Not served.", only=()),
    Field("web_search_options", ANYTHING, "Not served.", only=()),
    Field("functions", ANYTHING, "Not served; use tools.", only=()),
    Field("function_call", ANYTHING, "Not served; use tool_choice.", only=()),
    *TEMPLATE_FIELDS,
    *BEAM_FIELDS,
    *SAMPLING,
    *REQUEST,
    *WITHOUT_EFFECT,
    *REFUSED,
)
NAMES = renaming(
    FIELDS,
    "messages",
    logprobs="top_logprobs",
    tools_json="tools",
    template_kwargs_json="chat_template_kwargs",
    content_format="chat_template_content_format",
)


class ChatCompletions:
    """Answers the route's requests."""

    def __init__(self, generator: Generator, parsers: OutputParsers | None) -> None:
        """parsers: read reasoning and calls from outputs; None: outputs are content."""
        self._generator = generator
        self._parsers = parsers

    async def __call__(self, exchange: Exchange, body: bytes) -> None:
        """Answers one request. Raises HttpError and RouterError as long as no answer has begun."""
        values = exchange.read_fields(FIELDS, body)
        del body  # It may be large, and the request takes long.
        if "stream_options" in values and not values.get("stream"):
            raise wrong("stream_options", "is given without stream")
        check_prompt_logprobs(values)
        check_num_parts(values, self._generator.model.max_model_len)
        turn = _turn(values)
        exchange.rename = naming(NAMES, "tool_choice" if turn.is_forced else constraint_field(values))
        message = self._request(values, turn)
        head = {
            "id": f"chatcmpl-{values.get('request_id') or exchange.request_id}",
            "created": int(time.time()),
            "model": self._generator.model.name,
            "system_fingerprint": self._generator.fingerprint,
        }
        options = AnswerOptions.of(values, has_logprobs=values.get("logprobs", False))
        answer = ChatAnswer(head, options, turn, self._parsers)
        with exchange.cancelled_without_client():
            if not values.get("stream"):
                (completed,) = await self._generator.complete([message], exchange.call)
                await exchange.answer(200, await answer.whole(completed))
                return
            async with self._generator.stream([message], exchange.call) as streams:
                chunks = answer.chunks(streams[0].started)
                await stream_answer(exchange, streams, [chunks], answer.end)

    def _request(self, values: dict[str, Any], turn: Turn) -> inference_pb2.GenerateRequest:
        if "max_tokens" in values:
            values.setdefault("max_completion_tokens", values["max_tokens"])
        message = generate_request(values, FIELDS)
        if values.get("logprobs"):
            message.sampling_params.logprobs = _int32(values.get("top_logprobs", 0))
        elif "top_logprobs" in values:
            raise wrong("top_logprobs", "is given without logprobs")
        fill_template_fields(values, message.chat)
        turn.fill(message, self._generator.model, self._parsers)
        search_beams(values, FIELDS, message)
        return message


def fill_template_fields(values: dict[str, Any], chat: inference_pb2.ChatPrompt) -> None:
    """Sets what TEMPLATE_FIELDS give, but for the template's variables."""
    for name in ("add_generation_prompt", "continue_final_message", "chat_template"):
        if name in values:
            setattr(chat, name, values[name])
    chat.content_format = _CONTENT_FORMATS[values.get("chat_template_content_format", "auto")]


def template_kwargs(values: dict[str, Any]) -> dict[str, Any]:
    """The template's variables."""
    kwargs: dict[str, Any] = {name: values[name] for name in ("reasoning_effort", "documents") if name in values}
    kwargs.update(values.get("chat_template_kwargs", {}))
    return kwargs


def _turn(values: dict[str, Any]) -> Turn:
    tools = values.get("tools", [])
    for index, tool in enumerate(tools):
        check_tool(tool, f"tools[{index}]")
    return Turn(
        messages=values["messages"],
        tools=tools,
        tool_choice=_tool_choice(values.get("tool_choice", AUTO), tools),
        template_kwargs=template_kwargs(values),
        has_reasoning=values.get("include_reasoning", True),
        allows_parallel_calls=values.get("parallel_tool_calls", True),
    )


def check_tool(tool: dict[str, Any], param: str) -> None:
    """Checks that a tool is a function with a name. Raises HttpError."""
    if tool.get("type") != "function":
        raise HttpError(400, f"{param}.type: is not served; accepted: function", param=f"{param}.type")
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise wrong(f"{param}.function.name", "is missing")
    if not isinstance(function.get("parameters"), dict | None):
        raise wrong(f"{param}.function.parameters", "is no JSON schema")


def _tool_choice(given: str | dict[str, Any], tools: list[dict[str, Any]]) -> str:
    """AUTO, NONE, REQUIRED, or the name of a tool. Raises HttpError."""
    if given in (AUTO, NONE):
        return str(given)
    if given == REQUIRED:
        if not tools:
            raise wrong("tool_choice", "is required, and there are no tools")
        return REQUIRED
    function = given.get("function") if isinstance(given, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(given, dict) or given.get("type") != "function" or not isinstance(name, str):
        raise wrong("tool_choice", "accepted: auto, none, required, or a function by name")
    if name not in [tool["function"]["name"] for tool in tools]:
        raise wrong("tool_choice", f"names {name[:100]!r}, which is none of tools")
    return name


def _int32(value: int) -> int:
    """A number that a message can hold; one that is out of range stays so."""
    return max(-(1 << 31), min(value, (1 << 31) - 1))
