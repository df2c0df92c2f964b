"""Reads the requests of Anthropic's Messages API into turns."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import orjson
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
    Kind,
    choice_of,
    object_of,
    one_of,
)
from pagewire_router.http_front.names import renaming
from pagewire_router.http_front.sampling_fields import FOR_COMPLETIONS, MODEL, REFUSED, parameter_field
from pagewire_router.http_front.turns import AUTO, NONE, REQUIRED, Turn

_ANY, _TOOL = "any", "tool"
_CHOICE = FieldTable(
    Field("type", choice_of(AUTO, _ANY, _TOOL, NONE), "Whether a tool may, or must, be used.", is_required=True),
    Field("name", STRING, "The tool that must be used."),
    Field("disable_parallel_tool_use", BOOLEAN, "At most one tool is used."),
)
_THINKING = FieldTable(
    Field("type", choice_of("enabled", "disabled", "adaptive"), "Whether the model thinks.", is_required=True),
    Field("budget_tokens", INTEGER, "Accepted, without effect."),
    Field("display", STRING, "Accepted, without effect."),
)
_OUTPUT = FieldTable(
    Field("effort", STRING, "A variable for the template: reasoning_effort."),
    Field("format", OBJECT, "What the output must match: a JSON schema."),
)


def _refuse_thread(_value: Any, param: str) -> Any:
    """Refuses conversations that the server would store, so that clients go on with whole ones."""
    details = {"error_code": "thread_unsupported_request", "unsupported": [param]}
    message = f"{param}: is not served, nothing is stored: send all messages of the conversation"
    raise HttpError(400, message, param=param, code="unsupported_parameter", details=details)


PROMPT_FIELDS = (
    MODEL,
    Field("messages", OBJECTS, "The conversation, oldest message first.", is_required=True),
    Field("system", one_of(STRING, OBJECTS), "What the model is told before the conversation."),
    Field("tools", OBJECTS, "Tools that the model may use."),
    Field("tool_choice", object_of(_CHOICE), "Whether it may, or must, use one."),
    Field("thinking", object_of(_THINKING), "Whether it thinks, and tells so."),
    Field("output_config", object_of(_OUTPUT), "Effort and form of the output."),
    Field("chat_template_kwargs", OBJECT, "Further variables for the template."),
    Field("cache_control", OBJECT, "Accepted, without effect: prefixes are cached in any case."),
    Field("context_management", OBJECT, "Accepted, without effect."),
    Field("mcp_servers", OBJECTS, "Not served.", only=([],)),
    Field("container", STRING, "Not served.", only=()),
)
"""Fields that tokens are counted by, too."""
FIELDS = FieldTable(
    *PROMPT_FIELDS,
    replace(parameter_field("max_tokens"), doc="Most tokens to generate; 1 or more.", is_required=True),
    parameter_field("temperature"),
    parameter_field("top_p"),
    parameter_field("top_k"),
    parameter_field("extra_args", "vllm_xargs"),
    Field("stop_sequences", STRINGS, "Strings that end the output when generated.", sets="stop"),
    Field("stream", BOOLEAN, "Answers with server-sent events."),
    Field("thread", Kind({"type": "object"}, _refuse_thread), "Not served: nothing is stored.", only=()),
    Field("n", INTEGER, "Not served.", only=(1,)),
    Field("stop", ANYTHING, "Not served; use stop_sequences.", only=()),
    Field("response_format", ANYTHING, "Not served; use output_config.", only=()),
    Field("structured_outputs", ANYTHING, "Not served; use output_config.", only=()),
    *REFUSED,
    *FOR_COMPLETIONS,
    Field("metadata", OBJECT, "Accepted, without effect."),
    Field("service_tier", STRING, "Accepted, without effect."),
)
COUNT_FIELDS = FieldTable(*PROMPT_FIELDS)
NAMES = renaming(
    FIELDS,
    "messages",
    tools_json="tools",
    template_kwargs_json="chat_template_kwargs",
    structured_outputs="output_config.format",
)


def generate_request(values: dict[str, Any]) -> inference_pb2.GenerateRequest:
    """A request without a prompt, with the parameters that the values give. Raises HttpError."""
    message = inference_pb2.GenerateRequest()
    if "model" in values:
        message.model = values["model"]
    FIELDS.set_params(values, message.sampling_params)
    given = values.get("output_config", {}).get("format")
    if given is not None:
        if given.get("type") != "json_schema" or not isinstance(given.get("schema"), dict):
            raise wrong("output_config.format", "accepted: json_schema with a schema")
        message.sampling_params.structured_outputs.json = orjson.dumps(given["schema"]).decode()
    return message


def turn_of(values: dict[str, Any]) -> Turn:
    """The turn that a request asks for. Raises HttpError."""
    messages: list[dict[str, Any]] = []
    if "system" in values:
        messages.append({"role": "system", "content": _texts(values["system"], "system")})
    for index, message in enumerate(values["messages"]):
        messages += _messages(message, f"messages[{index}]")
    tools = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(values.get("tools", []))]
    choice = values.get("tool_choice", {"type": AUTO})
    thinking = values.get("thinking", {}).get("type")
    kwargs: dict[str, Any] = {}
    if thinking in ("enabled", "disabled"):
        kwargs["enable_thinking"] = thinking == "enabled"
    if effort := values.get("output_config", {}).get("effort"):
        kwargs["reasoning_effort"] = effort
    return Turn(
        messages=messages,
        tools=tools,
        tool_choice=_tool_choice(choice, tools),
        template_kwargs={**kwargs, **values.get("chat_template_kwargs", {})},
        has_reasoning=thinking in ("enabled", "adaptive"),
        allows_parallel_calls=not choice.get("disable_parallel_tool_use", False),
    )


def _tool(tool: dict[str, Any], param: str) -> dict[str, Any]:
    """A tool in OpenAI's form."""
    if tool.get("type", "custom") not in ("custom", None):
        raise not_served(f"{param}.type")
    name, schema = tool.get("name"), tool.get("input_schema")
    if not isinstance(name, str) or not name:
        raise wrong(f"{param}.name", "is missing")
    if not isinstance(schema, dict):
        raise wrong(f"{param}.input_schema", "is no JSON schema")
    function = {"name": name, "description": tool.get("description", ""), "parameters": schema}
    return {"type": "function", "function": function}


def _tool_choice(choice: dict[str, Any], tools: list[dict[str, Any]]) -> str:
    kind = choice["type"]
    if kind == _TOOL:
        name = choice.get("name", "")
        if name not in [tool["function"]["name"] for tool in tools]:
            raise wrong("tool_choice.name", f"is {name[:100]!r}, which is none of tools")
        return str(name)
    if kind == _ANY and not tools:
        raise wrong("tool_choice", "is any, and there are no tools")
    return REQUIRED if kind == _ANY else str(kind)


def _messages(message: dict[str, Any], param: str) -> Iterator[dict[str, Any]]:
    """A message in OpenAI's form, where results of tools are messages of their own."""
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise wrong(f"{param}.role", "accepted: user, assistant")
    if isinstance(content, str):
        yield {"role": role, "content": content}
        return
    if not isinstance(content, list):
        raise wrong(f"{param}.content", "is neither text nor an array of blocks")
    blocks = [(block, f"{param}.content[{index}]") for index, block in enumerate(content)]
    yield from _assistant(blocks) if role == "assistant" else _user(role, blocks)


def _user(role: str, blocks: list[tuple[Any, str]]) -> Iterator[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    for block, param in blocks:
        if _kind(block, param) == "tool_result":
            if parts:
                yield {"role": role, "content": parts}
                parts = []
            content = _texts(block.get("content") or "", f"{param}.content")
            yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content}
        else:
            parts.append(_text(block, param))
    if parts:
        yield {"role": role, "content": parts}


def _assistant(blocks: list[tuple[Any, str]]) -> Iterator[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    reasoning = ""
    for block, param in blocks:
        kind = _kind(block, param)
        if kind == "thinking":
            reasoning += str(block.get("thinking", ""))
        elif kind == "tool_use":
            function = {"name": block.get("name"), "arguments": orjson.dumps(block.get("input") or {}).decode()}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind != "redacted_thinking":
            parts.append(_text(block, param))
    message: dict[str, Any] = {"role": "assistant", "content": parts or ""}
    if reasoning:
        message["reasoning_content"] = reasoning
    yield {**message, "tool_calls": calls} if calls else message


def _texts(value: Any, param: str) -> Any:
    """Text, or text parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong(param, "is neither text nor an array of blocks")
    return [_text(block, f"{param}[{index}]") for index, block in enumerate(value)]


def _text(block: Any, param: str) -> dict[str, Any]:
    if _kind(block, param) != "text":
        raise HttpError(400, f"{param}.type: is not served; accepted: text", param=f"{param}.type")
    if not isinstance(block.get("text"), str):
        raise wrong(f"{param}.text", "is no text")
    return {"type": "text", "text": block["text"]}


def _kind(block: Any, param: str) -> Any:
    if not isinstance(block, dict):
        raise wrong(param, "is no object")
    return block.get("type")
