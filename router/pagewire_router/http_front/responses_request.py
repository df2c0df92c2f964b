"""Reads the requests of OpenAI's Responses API into turns. Nothing is stored: each has the whole conversation."""

from collections.abc import Iterator
from typing import Any

from pagewire.v1 import inference_pb2

from pagewire_router.http_front.errors import HttpError, not_served, wrong
from pagewire_router.http_front.fields import (
    ANYTHING,
    BOOLEAN,
    INTEGER,
    OBJECT,
    OBJECTS,
    STRING,
    STRINGS,
    Field,
    FieldTable,
    choice_of,
    object_of,
    one_of,
)
from pagewire_router.http_front.names import renaming
from pagewire_router.http_front.sampling_fields import (
    FOR_COMPLETIONS,
    MODEL,
    REFUSED,
    SAMPLING,
    STREAM,
    TOP_LOGPROBS,
    WITHOUT_EFFECT,
    parameter_field,
    read_format,
)
from pagewire_router.http_front.sampling_fields import generate_request as openai_request
from pagewire_router.http_front.turns import AUTO, NONE, REQUIRED, Turn

_REASONING = FieldTable(
    Field("effort", STRING, "A variable for the template: reasoning_effort."),
    Field("summary", STRING, "Accepted, without effect: the reasoning itself is told."),
    Field("generate_summary", STRING, "Accepted, without effect."),
)
_TEXT = FieldTable(
    Field("format", OBJECT, "What the output must match: text, json_object or json_schema."),
    Field("verbosity", STRING, "Not served.", only=("medium",)),
)
_LOGPROBS = "message.output_text.logprobs"
FIELDS = FieldTable(
    MODEL,
    Field("input", one_of(STRING, OBJECTS), "Text, or the items of the conversation.", is_required=True),
    Field("instructions", STRING, "A system message before the conversation."),
    parameter_field("max_tokens", "max_output_tokens"),
    Field("tools", OBJECTS, "Functions that the model may call."),
    Field("tool_choice", one_of(choice_of(AUTO, NONE, REQUIRED), OBJECT), "Whether it may, or must, call one."),
    Field("parallel_tool_calls", BOOLEAN, "Allows several calls in one answer."),
    Field("reasoning", object_of(_REASONING), "How the model reasons."),
    Field("text", object_of(_TEXT), "The form of the output."),
    Field("top_logprobs", TOP_LOGPROBS, "Most probable tokens to return for each token."),
    Field("include", STRINGS, f"Further parts of the answer; {_LOGPROBS} is served."),
    Field("chat_template_kwargs", OBJECT, "Further variables for the template."),
    Field("priority", INTEGER, "Lower runs first."),
    Field("cache_salt", STRING, "Requests share cached prefixes only with requests of the same salt."),
    Field("request_id", STRING, "The id of the request; unique among those that are alive."),
    STREAM,
    Field("stream_options", OBJECT, "Accepted, without effect."),
    Field("store", BOOLEAN, "Nothing is stored.", only=(False,)),
    Field("background", BOOLEAN, "Not served.", only=(False,)),
    Field("truncation", STRING, "Not served.", only=("disabled",)),
    Field("previous_response_id", STRING, "Not served: nothing is stored.", only=()),
    Field("conversation", ANYTHING, "Not served: nothing is stored.", only=()),
    Field("prompt", ANYTHING, "Not served.", only=()),
    Field("max_tool_calls", INTEGER, "Not served.", only=()),
    Field("n", INTEGER, "Not served.", only=(1,)),
    *FOR_COMPLETIONS,
    Field("previous_input_messages", ANYTHING, "Not served: give input.", only=()),
    Field("enable_response_messages", BOOLEAN, "Not served.", only=(False,)),
    Field("include_reasoning", BOOLEAN, "Tells the reasoning."),
    Field("max_tokens", ANYTHING, "Not served; use max_output_tokens.", only=()),
    Field("max_completion_tokens", ANYTHING, "Not served; use max_output_tokens.", only=()),
    Field("response_format", ANYTHING, "Not served; use text.", only=()),
    Field("structured_outputs", ANYTHING, "Not served; use text.", only=()),
    *(field for field in SAMPLING if field.name != "n"),
    *(field for field in REFUSED if field.name != "store"),
    *WITHOUT_EFFECT,
)
NAMES = renaming(
    FIELDS,
    "input",
    messages="input",
    logprobs="top_logprobs",
    tools_json="tools",
    template_kwargs_json="chat_template_kwargs",
)
_IGNORED_INCLUDES = ("reasoning.encrypted_content",)


def generate_request(values: dict[str, Any]) -> inference_pb2.GenerateRequest:
    """A request without a prompt, with the parameters that the values give. Raises HttpError."""
    message = openai_request(values, FIELDS)
    form = values.get("text", {}).get("format")
    if form is not None:
        # In Chat Completions the schema is one level deeper.
        described = {key: value for key, value in form.items() if key != "type"}
        constraint = read_format(form, described, "text.format", "text.format")
        if constraint is not None:
            message.sampling_params.structured_outputs.CopyFrom(constraint)
    if has_logprobs(values):
        top = max(-(1 << 31), min(values.get("top_logprobs", 0), (1 << 31) - 1))
        message.sampling_params.logprobs = top
    return message


def has_logprobs(values: dict[str, Any]) -> bool:
    """Whether log-probabilities are asked for. Raises HttpError for other parts that are."""
    for index, part in enumerate(values.get("include", ())):
        if part != _LOGPROBS and part not in _IGNORED_INCLUDES:
            raise not_served(f"include[{index}]")
    return _LOGPROBS in values.get("include", ()) or "top_logprobs" in values


def turn_of(values: dict[str, Any]) -> Turn:
    """The turn that a request asks for. Raises HttpError."""
    messages: list[dict[str, Any]] = []
    if "instructions" in values:
        messages.append({"role": "system", "content": values["instructions"]})
    given = values["input"]
    messages += [{"role": "user", "content": given}] if isinstance(given, str) else _messages(given)
    tools = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(values.get("tools", []))]
    kwargs = {}
    if effort := values.get("reasoning", {}).get("effort"):
        kwargs["reasoning_effort"] = effort
    return Turn(
        messages=messages,
        tools=tools,
        tool_choice=_tool_choice(values.get("tool_choice", AUTO), tools),
        template_kwargs={**kwargs, **values.get("chat_template_kwargs", {})},
        has_reasoning=values.get("include_reasoning", True),
        allows_parallel_calls=values.get("parallel_tool_calls", True),
    )


def _messages(items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The items as messages. Reasoning, text and calls of one turn are one message."""
    turn: dict[str, Any] | None = None
    for index, item in enumerate(items):
        param = f"input[{index}]"
        kind = item.get("type", "message")
        if kind == "message" and item.get("role") != "assistant":
            if turn is not None:
                yield turn
                turn = None
            yield {"role": item.get("role"), "content": item.get("content", "")}
        elif kind == "function_call_output":
            if turn is not None:
                yield turn
                turn = None
            yield {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output", "")}
        else:
            if turn is not None and kind in ("message", "reasoning") and (turn["content"] or "tool_calls" in turn):
                yield turn
                turn = None
            turn = turn or {"role": "assistant", "content": ""}
            _add(item, kind, param, turn)
    if turn is not None:
        yield turn


def _add(item: dict[str, Any], kind: Any, param: str, turn: dict[str, Any]) -> None:
    """Adds an item to the assistant's message."""
    if kind == "message":
        turn["content"] = item.get("content", "")
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments", "")}
        turn.setdefault("tool_calls", []).append({"id": item.get("call_id"), "type": "function", "function": function})
    elif kind == "reasoning":
        parts = item.get("content") or item.get("summary") or []
        if not isinstance(parts, list):
            raise wrong(f"{param}.content", "is no array of parts")
        texts = [str(part.get("text", "")) for part in parts if isinstance(part, dict)]
        turn["reasoning_content"] = turn.get("reasoning_content", "") + "\n".join(texts)
    else:
        raise HttpError(400, f"{param}.type: {str(kind)[:100]!r} is not served", param=f"{param}.type")


def _tool(tool: dict[str, Any], param: str) -> dict[str, Any]:
    """A tool in the form of Chat Completions."""
    if tool.get("type") != "function":
        raise HttpError(400, f"{param}.type: is not served; accepted: function", param=f"{param}.type")
    if not isinstance(tool.get("name"), str) or not tool["name"]:
        raise wrong(f"{param}.name", "is missing")
    if not isinstance(tool.get("parameters"), dict | None):
        raise wrong(f"{param}.parameters", "is no JSON schema")
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def _tool_choice(given: str | dict[str, Any], tools: list[dict[str, Any]]) -> str:
    if given == REQUIRED and not tools:
        raise wrong("tool_choice", "is required, and there are no tools")
    if isinstance(given, str):
        return given
    if given.get("type") != "function":
        raise not_served("tool_choice.type")
    if given.get("name") not in [tool["function"]["name"] for tool in tools]:
        raise wrong("tool_choice", f"names {str(given.get('name'))[:100]!r}, which is none of tools")
    return str(given["name"])
